"""Packed weights, and products with them that prove themselves."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightguard.finding import Coverage, Finding, Report, finding, ordered
from weightguard.scan.digest import BLOCK_BYTES, block_digest
from weightguard_integrations.ternary import imports, operands, recovery
from weightguard_integrations.ternary.engine import native
from weightguard_integrations.ternary.incident import ProductIncident
from weightguard_integrations.ternary.memory import packed_bytes
from weightguard_integrations.ternary.operands import Array
from weightguard_integrations.ternary.place import Geometry
from weightguard_integrations.ternary.record import PackedRecord

OnFault: TypeAlias = Literal["raise", "mark", "recompute", "repair"]
Verify: TypeAlias = Literal["always", "off"]
Drill: TypeAlias = tuple[int, int, int, int]
"""Where (0 activation, 1 accumulator, 2 token scale), token, index, and the bits to flip."""

ON_FAULT: tuple[OnFault, ...] = ("raise", "mark", "recompute", "repair")
INCIDENTS_KEPT = 1000
MAX_DIGITS = 40
"""More than any check vector needs."""
MAX_LISTED = 100
"""Changed bytes that a report's findings name."""


class PackedMatrix:
    """Weights [N, K] packed with their check rows; made by ``PackedTernary`` or ``PackedInt8``.

    ``packed`` is a writable view of the packed bytes, for drills; ``incidents`` the last alarms of
    products, newest last.
    """

    _ternary: ClassVar[bool]
    kind: ClassVar[str]

    def __init__(
        self, weight: NDArray[np.int8], scale: Any, *, name: str = "weight", golden: bool = False
    ):
        weight = _weights(weight, ternary=self._ternary)
        rows, columns = weight.shape
        digits, nbytes = native.measure(self._ternary, weight)
        packed = packed_bytes(nbytes)
        native.pack(self._ternary, weight, digits, packed)
        self._hold(packed, _scales(scale, rows), Geometry(self._ternary, rows, columns, digits))
        self.name = name
        self._golden = packed.copy() if golden else None

    def _hold(
        self, packed: NDArray[np.uint8], scales: NDArray[np.float32], geometry: Geometry
    ) -> None:
        self.packed, self._scales, self.geometry = packed, scales, geometry
        self._scales_kept = scales.copy()
        self._scales_digest = _digest(scales)
        self._record = PackedRecord.of(packed, geometry.all_groups)
        self._native = native.PackedMatrix(
            self._ternary, geometry.rows, geometry.columns, geometry.digits, packed, scales,
            native.scale_check(scales),
        )  # fmt: skip
        self.incidents: deque[ProductIncident] = deque(maxlen=INCIDENTS_KEPT)

    @classmethod
    def from_int8(
        cls, weight: NDArray[np.int8], scale: Any, *, name: str = "weight", golden: bool = False
    ) -> Self:
        """Pack int8 weights [N, K], -1, 0 and 1 in ternary ones; scale is a number or [N].

        ``golden`` keeps a second copy of the packed bytes to repair from. Raises TypeError and
        ValueError for weights or scales that are none.
        """
        return cls(weight, scale, name=name, golden=golden)

    @classmethod
    def from_packed(
        cls, packed: NDArray[np.uint8], scale: Any, shape: tuple[int, int], digits: int, *,
        name: str = "weight", golden: bool = False,
    ) -> Self:  # fmt: skip
        """Take packed bytes as ``packed`` gives them; they are unpacked, and packed again.

        Raises ValueError for bytes that are not what packing their own weights gives, in
        padding, codes and check rows.
        """
        rows, columns = shape
        geometry = Geometry(cls._ternary, rows, columns, digits)
        if min(rows, columns) < 1 or not 1 <= digits <= MAX_DIGITS:
            raise ValueError(f"no packed matrix has shape {shape} and {digits} digits")
        if packed.nbytes != geometry.all_groups * geometry.group_bytes:
            raise ValueError(f"{packed.nbytes} bytes are not those of a packed matrix of {shape}")
        given = np.ascontiguousarray(packed).reshape(-1)
        claimed = cls.__new__(cls)
        claimed._hold(given, _scales(scale, rows), geometry)
        made = cls(claimed.unpack(), scale, name=name, golden=golden)
        if made.geometry != geometry or not np.array_equal(made.packed, given):
            raise ValueError("packed bytes and check rows contradict each other")
        return made

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): outputs and inputs."""
        return self.geometry.rows, self.geometry.columns

    @property
    def nbytes(self) -> int:
        """Bytes that a checked product reads: packed weights, check rows and scales."""
        return self.packed.nbytes + self._scales.nbytes

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scales in use, one or N of them; a writable view, for drills."""
        return self._scales

    def linear(
        self,
        x: Array,
        out: Array | None = None,
        verify: Verify = "always",
        on_fault: OnFault = "raise",
        *,
        drills: tuple[Drill, ...] = (),
    ) -> Array:
        """Return x times the transposed weights, [..., N] for x of shape [..., K].

        x and ``out`` are float32, float16 or bfloat16, NumPy arrays or torch tensors on the CPU;
        the result is of x's kind and number format unless ``out`` is given. Each token is quantised
        to int8 by its greatest magnitude (at least 1e-5), the products are exact integers, and
        one multiplication by the two scales ends it. A token with NaN or an infinity gives NaN.

        ``verify="always"`` checks every product. On an alarm the incident is kept and, by
        ``on_fault``: "raise" raises; "mark" writes NaN over the tokens' outputs; "recompute"
        computes again, once; "repair" first restores packed bytes and scales. What still fails
        raises IntegrityError, after NaN was written over the outputs concerned. ``drills`` flips
        bits on the way, for tests.

        Raises TypeError and ValueError for arrays that do not fit.
        """
        if verify not in ("always", "off"):
            raise ValueError(f"verify is {verify!r:.40}; it must be 'always' or 'off'")
        if on_fault not in ON_FAULT:
            raise ValueError(f"on_fault is {on_fault!r:.40}; it must be one of {ON_FAULT}")
        rows, columns = self.shape
        source = operands.activations(x, columns)
        shape = (*source.array.shape[:-1], rows)
        target = operands.new_output(x, shape) if out is None else operands.output(out, shape)
        tokens = math.prod(shape[:-1])

        def product(bits: tuple[Drill, ...] = ()) -> bytes | None:
            return self._native.multiply(
                source.address, source.number, tokens, target.address, target.number,
                verify == "always", list(bits),
            )  # fmt: skip

        alarms = product(drills)
        if alarms is not None:
            recovery.handle(self, alarms, product, target, on_fault)
        return target.array

    def unpack(self) -> NDArray[np.int8]:
        """Return the weights, int8 of shape [N, K]; a damaged ternary code reads as 2."""
        out = np.empty(self.shape, np.int8)
        self._native.unpack(out)
        return out

    def check(self) -> Report:
        """Hash packed bytes and scales again; the report's findings are what changed."""
        findings = [*self._packed_findings(), *self._scale_findings()]
        return Report(
            checkpoint=self.name,
            format=self.kind,
            complete=True,
            findings=ordered(findings),
            coverage=Coverage(1, 1, self.nbytes, self.nbytes),
        )

    def repair(self) -> Report:
        """Restore what residues, the golden copy and the kept scales can, then check again."""
        if _digest(self._scales) != self._scales_digest:
            self._scales[:] = self._scales_kept
        self._record.repair(self.packed, self._golden)
        return self.check()

    def _packed_findings(self) -> list[Finding]:
        damaged = self._record.damaged(self.packed)
        changes = self._record.changes(self.packed) if damaged else []
        found = []
        for block in damaged:
            here = [c for c in changes if c.offset // BLOCK_BYTES == block]
            places = [self.geometry.place(c.offset) for c in here]
            found.append(
                finding(
                    "WG921",
                    f"block {block} of the packed weights changed since they were packed",
                    tensor=self.name,
                    block=block,
                    row=places[0].row if places else None,
                    evidence={
                        "consistent_with": [
                            {
                                "offset": c.offset,
                                "old": c.old,
                                "new": c.new,
                                "row": p.row,
                                "columns": list(p.columns),
                                "tile": p.tile,
                                "check_row": p.check,
                            }
                            for c, p in list(zip(here, places, strict=True))[:MAX_LISTED]
                        ]
                    },
                )
            )
        return found

    def _scale_findings(self) -> list[Finding]:
        if _digest(self._scales) == self._scales_digest:
            return []
        bits, kept = self._scales.view(np.uint32), self._scales_kept.view(np.uint32)
        rows = np.flatnonzero(bits != kept).tolist()
        return [
            finding(
                "WG921",
                "scales of the packed weights changed since they were packed",
                tensor=self.name,
                row=rows[0] if rows else None,
                evidence={"scales": rows[:MAX_LISTED]},
            )
        ]


class PackedTernary(PackedMatrix):
    """Weights of {-1, 0, 1}, four to a byte, with one scale, or one an output row."""

    _ternary = True
    kind = "packed ternary"

    @classmethod
    def from_master(cls, weight: Array, *, name: str = "weight", golden: bool = False) -> Self:
        """Quantise float weights [N, K] by their mean magnitude (arXiv 2402.17764) and pack them.

        Raises TypeError and ValueError for weights that are no finite matrix.
        """
        return cls(*imports.absmean(weight), name=name, golden=golden)

    @classmethod
    def from_hugging_face(
        cls, packed: Array, weight_scale: Any, *, scale_divides: bool, name: str = "weight",
        golden: bool = False,
    ) -> Self:  # fmt: skip
        """Pack transformers' BitNet uint8 [N/4, K]: row n + i * N/4 lies in bits 2i of row n.

        ``scale_divides`` for ``BitLinear``, whose outputs are divided by ``weight_scale``;
        ``AutoBitLinear`` multiplies. Raises ValueError for codes that are no weight.
        """
        return cls(
            imports.hugging_face(packed),
            imports.hugging_face_scale(weight_scale, divides=scale_divides),
            name=name,
            golden=golden,
        )

    @classmethod
    def from_gguf(
        cls, blocks: NDArray[np.uint8], kind: Literal["TQ1_0", "TQ2_0"], *, name: str = "weight",
        golden: bool = False,
    ) -> Self:  # fmt: skip
        """Pack GGML blocks, uint8 [N, bytes of a row], whose scales are equal in each row.

        Raises ValueError for others: this layout has one scale a row.
        """
        return cls(*imports.gguf(blocks, kind), name=name, golden=golden)


class PackedInt8(PackedMatrix):
    """int8 weights with one scale an output row, under the same check: lm_head and the like."""

    _ternary = False
    kind = "packed int8"

    @classmethod
    def from_float(cls, weight: Array, *, name: str = "weight", golden: bool = False) -> Self:
        """Quantise float weights [N, K] by the greatest magnitude of each row, and pack them."""
        return cls(*imports.absmax_rows(weight), name=name, golden=golden)


def _digest(scales: NDArray[np.float32]) -> bytes:
    return block_digest(scales.view(np.uint8).data)


def _weights(weight: NDArray[np.int8], *, ternary: bool) -> NDArray[np.int8]:
    if not isinstance(weight, np.ndarray) or weight.dtype != np.int8:
        kind = getattr(weight, "dtype", type(weight).__name__)
        raise TypeError(f"weights are {kind}; they must be a NumPy array of int8")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weights have shape {weight.shape}; they must be a matrix, not empty")
    weight = np.ascontiguousarray(weight)
    at = native.first_invalid(ternary, weight)
    if at >= 0:
        row, column = divmod(at, weight.shape[1])
        raise ValueError(f"weight [{row}, {column}] is {weight[row, column]}, not -1, 0 or 1")
    return weight


def _scales(scale: Any, rows: int) -> NDArray[np.float32]:
    scales = np.array(scale, np.float32).reshape(-1)
    if len(scales) not in (1, rows):
        raise ValueError(f"{len(scales)} scales for {rows} rows; give one, or one a row")
    if not np.isfinite(scales).all():
        raise ValueError("scales must be finite")
    return scales
