"""Reading tensors whose every byte is the one that a manifest attests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from weightguard import Manifest, TensorView, WeightguardError
from weightguard.scan.digest import tensor_hasher

COPY_BYTES = 1 << 20
FLOATS = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


def read_attested(tensor: TensorView, manifest: Manifest | None) -> NDArray[np.uint8]:
    """Return a tensor's bytes; raises WeightguardError unless their digest is the manifest's."""
    data = np.empty(tensor.nbytes, np.uint8)
    for start in range(0, len(data), COPY_BYTES):
        tensor.source.read_into(start, data[start : start + COPY_BYTES].data)
    if manifest is not None:
        algorithm = manifest.document.digest_algorithm
        hasher = tensor_hasher(algorithm, tensor.dtype.name, tensor.shape)
        hasher.update(data.data)
        record = manifest.document.tensors[tensor.name]
        if f"{algorithm}:{hasher.hexdigest()}" != record.digest:
            raise WeightguardError(
                f"{tensor.name!r:.200} is not the attested one: it changed since the manifest was "
                "written. See what changed with `weightguard verify`."
            )
    return data


def require_same_names(tensors: Sequence[TensorView], manifest: Manifest) -> None:
    """Raise WeightguardError unless checkpoint and manifest have the same tensors."""
    different = {tensor.name for tensor in tensors} ^ set(manifest.document.tensors)
    if different:
        raise WeightguardError(
            f"checkpoint and manifest differ in {len(different)} tensors, the first "
            f"{sorted(different)[0]!r:.200}. Name the manifest of this checkpoint."
        )


def as_values(tensor: TensorView, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the values of a float tensor, as float32; raises WeightguardError for others."""
    if tensor.dtype.name not in FLOATS:
        raise WeightguardError(f"{tensor.name!r:.200} is {tensor.dtype.name}, not float weights")
    if tensor.dtype.name == "BF16":
        bits = data.view("<u2").astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).reshape(tensor.shape)
    return data.view(FLOATS[tensor.dtype.name]).astype(np.float32).reshape(tensor.shape)
