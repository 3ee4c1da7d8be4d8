"""Packed weights, and products with them that prove themselves."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightguard.finding import Coverage, Finding, Report, ordered
from weightguard.guard import Incident
from weightguard_integrations.ternary import operands, recovery
from weightguard_integrations.ternary.engine import native
from weightguard_integrations.ternary.incident import stored_finding
from weightguard_integrations.ternary.live import PACKED, SCALE, TernaryAdapter
from weightguard_integrations.ternary.memory import packed_bytes
from weightguard_integrations.ternary.operands import Array
from weightguard_integrations.ternary.place import Geometry
from weightguard_integrations.ternary.record import Copies, PackedRecord

OnFault: TypeAlias = Literal["raise", "mark", "recompute", "repair"]
Verify: TypeAlias = Literal["always", "off"]
Drill: TypeAlias = tuple[int, int, int, int]
"""Where (0 activation, 1 accumulator, 2 token scale), token, index, and the bits to flip."""
Watcher: TypeAlias = Callable[[Sequence[Finding]], None]

ON_FAULT: tuple[OnFault, ...] = ("raise", "mark", "recompute", "repair")
INCIDENTS_KEPT = 1000
MAX_DIGITS = 40
"""More than any check vector needs."""

LOGGER = logging.getLogger("weightguard.ternary")
_serials = itertools.count(1)


class PackedMatrix:
    """Weights [N, K] packed with their check rows; made by ``PackedTernary`` or ``PackedInt8``.

    ``packed`` is a writable view of the packed bytes, for drills, and ``groups`` the same as
    [groups, bytes of a group]; ``scales`` are the scales in use, float32, one or N of them.
    ``incidents`` are what the last alarms of products came to, newest last: WG920 for the
    product, then WG921 for stored bytes that explain it. ``serial`` is no other matrix's.
    """

    ternary: ClassVar[bool]
    kind: ClassVar[str]

    def __init__(
        self, packed: NDArray[np.uint8], scale: Any, geometry: Geometry, *, name: str = "weight",
        golden: bool = False,
    ):  # fmt: skip
        """Hold packed bytes, which are believed; see ``from_int8`` and ``from_packed``."""
        self.packed, self.geometry, self.name = packed, geometry, name
        self.groups = packed.reshape(geometry.all_groups, geometry.group_bytes)
        self.scales = _scales(scale, geometry.rows)
        self.serial = next(_serials)
        self.incidents: deque[Incident] = deque(maxlen=INCIDENTS_KEPT)
        self._numbers = itertools.count(1)
        self._watchers: tuple[Watcher, ...] = ()
        self._native = native.PackedMatrix(
            self.ternary, geometry.rows, geometry.columns, geometry.digits, packed, self.scales,
            native.scale_check(self.scales),
        )  # fmt: skip
        copies = {f".{SCALE}": self.scales.view(np.uint8).copy()}
        if golden:
            copies[f".{PACKED}"] = packed.copy()
        self._record = PackedRecord.of(self._live(), Copies(copies))

    @classmethod
    def from_int8(
        cls, weight: NDArray[np.int8], scale: Any, *, name: str = "weight", golden: bool = False
    ) -> Self:
        """Pack int8 weights [N, K], -1, 0 and 1 in ternary ones; scale is a number or [N].

        ``golden`` keeps a second copy of the packed bytes to repair from. Raises TypeError and
        ValueError for weights or scales that are none.
        """
        weight = _weights(weight, ternary=cls.ternary)
        digits, nbytes = native.measure(cls.ternary, weight)
        packed = packed_bytes(nbytes)
        native.pack(cls.ternary, weight, digits, packed)
        rows, columns = weight.shape
        geometry = Geometry(cls.ternary, rows, columns, digits)
        return cls(packed, scale, geometry, name=name, golden=golden)

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
        geometry = Geometry(cls.ternary, rows, columns, digits)
        if min(rows, columns) < 1 or not 1 <= digits <= MAX_DIGITS:
            raise ValueError(f"no packed matrix has shape {shape} and {digits} digits")
        if packed.nbytes != geometry.all_groups * geometry.group_bytes:
            raise ValueError(f"{packed.nbytes} bytes are not those of a packed matrix of {shape}")
        given = np.ascontiguousarray(packed).reshape(-1)
        claimed = cls(given, scale, geometry)
        made = cls.from_int8(claimed.unpack(), scale, name=name, golden=golden)
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
        return self.packed.nbytes + self.scales.nbytes

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

        ``verify="always"`` checks every product. On an alarm the incident is kept and told and, by
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
        target = operands.new_output(source, shape) if out is None else operands.output(out, shape)
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
        return Report(
            checkpoint=self.name,
            format=self.kind,
            complete=True,
            findings=ordered(
                stored_finding(self.name, self.geometry, ref, diagnosis)
                for ref, diagnosis in self._record.damage(self._live())
            ),
            coverage=Coverage(1, 1, self.nbytes, self.nbytes),
        )

    def repair(self) -> Report:
        """Restore what residues, the golden copy and the kept scales can, then check again."""
        self._record.repair(self._live())
        return self.check()

    def witness(self, watcher: Watcher) -> Callable[[], None]:
        """Have ``watcher`` called with the findings of each alarm; return what ends that.

        It says what they are instead of the log.
        """
        self._watchers = (*self._watchers, watcher)

        def end() -> None:
            self._watchers = tuple(other for other in self._watchers if other is not watcher)

        return end

    def note(self, found: Sequence[Finding]) -> list[Incident]:
        """Keep and tell what an alarm came to: the product's finding, then what explains it."""
        first = next(self._numbers)
        numbers = (first, *itertools.islice(self._numbers, len(found) - 1))
        incidents = [
            Incident(number, time.time(), finding, None if number == first else first)
            for number, finding in zip(numbers, found, strict=True)
        ]
        self.incidents.extend(incidents)
        for watcher in self._watchers:
            watcher(found)
        if not self._watchers:
            for finding in found:
                _log(self.name, finding)
        return incidents

    def _live(self) -> TernaryAdapter:
        return TernaryAdapter({"": self})


def _log(name: str, found: Finding) -> None:
    # names come from files: nothing of them may look like another line
    line = f"{found.rule} {name:.200}: {found.message}"
    LOGGER.critical("%s", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


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
