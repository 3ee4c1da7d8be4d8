"""What vouches for live tensors: a manifest's records, found by name and else by content.

A tensor's digest does not depend on its name, so equal bytes are enough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from weightguard.guard.adapter import LiveTensor
from weightguard.guard.casts import narrower
from weightguard.guard.originals import Originals
from weightguard.guard.pieces import Piece
from weightguard.manifest import Manifest, TensorRecord
from weightguard.scan.digest import DigestAlgorithm
from weightguard.tensor import DTYPES

TensorType: TypeAlias = tuple[str, tuple[int, ...]]
"""Name of the dtype, and shape."""


class Vouchers:
    """The manifest's records, by name and by content, and the originals of casts that round."""

    def __init__(
        self,
        manifest: Manifest | None,
        names: Mapping[str, str],
        originals: Originals | None,
        pieces: Mapping[str, Sequence[Piece]],
    ):
        """``names`` maps live tensors to the manifest's where they are called differently.

        ``pieces`` declares, by live name, of which attested byte ranges a tensor is made up.
        """
        self.originals, self.pieces = originals, pieces
        records = {} if manifest is None else manifest.document.tensors
        self.manifest, self.records, self._names = manifest, records, names
        self.algorithm: DigestAlgorithm = (
            "blake3" if manifest is None else manifest.document.digest_algorithm
        )
        self._primary = {n: name for name, r in records.items() for n in (name, *r.aliases)}
        self._by_content: defaultdict[str, list[str]] = defaultdict(list)
        for name, record in records.items():
            self._by_content[record.digest].append(name)
        self._types = {(record.dtype, record.shape) for record in records.values()}

    def named(self, tensor: LiveTensor) -> str | None:
        """Return the record that a live tensor's names point to, None without one."""
        names = (self._names.get(tensor.name), tensor.name, *tensor.aliases)
        return next((self._primary[n] for n in names if n in self._primary), None)

    def readings(self, tensor: LiveTensor) -> set[TensorType]:
        """Return the types under which the tensor's bytes may equal a record."""
        live = (tensor.dtype.name, tensor.shape)
        narrow = ((name, tensor.shape) for name in narrower(tensor.dtype.name))
        readings = {kind for kind in (live, *narrow) if kind in self._types}
        name = self.named(tensor)
        if name is not None and _readable(tensor, self.records[name]):
            readings.add((self.records[name].dtype, self.records[name].shape))
        return readings

    def with_content(self, digests: Iterable[str]) -> str | None:
        """Return a record that one of the digests equals."""
        return next((self._by_content[d][0] for d in digests if d in self._by_content), None)


def _readable(tensor: LiveTensor, record: TensorRecord) -> bool:
    """Return whether the live bytes, perhaps widened, can be read as the record's type."""
    dtype = DTYPES[record.dtype]
    same = record.dtype == tensor.dtype.name or record.dtype in narrower(tensor.dtype.name)
    elements = tensor.nbytes // tensor.dtype.block_bytes * tensor.dtype.block_elements
    return same and elements == _elements(record.shape) and not elements % dtype.block_elements


def _elements(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=object))
