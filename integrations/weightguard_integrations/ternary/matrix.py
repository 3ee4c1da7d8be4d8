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
from weightguard_integrations.ternary.contents import as_scales, require_weights
from weightguard_integrations.ternary.engine import native
from weightguard_integrations.ternary.incident import stored_finding
from weightguard_integrations.ternary.live import PACKED, SCALE, TernaryAdapter
from weightguard_integrations.ternary.memory import packed_bytes
from weightguard_integrations.ternary.operands import Array, Memory
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
        self.scales = as_scales(scale, geometry.rows)
        self.serial = next(_serials)
        self._own: tuple[Memory, ...] = (
            Memory("packed bytes", packed),
            Memory("scales", self.scales),
        )
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
        weight = require_weights(weight, ternary=cls.ternary)
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
        if not isinstance(packed, np.ndarray) or packed.dtype != np.uint8:
            raise TypeError("packed bytes must be a NumPy array of uint8")
        rows, columns = shape
        geometry = Geometry(cls.ternary, rows, columns, digits)
        if min(rows, columns) < 1 or not 1 <= digits <= MAX_DIGITS:
            raise ValueError(f"no packed matrix has shape {shape} and {digits} digits")
        expected = geometry.all_groups * geometry.group_bytes
        if packed.nbytes != expected:
            raise ValueError(
                f"{packed.nbytes} packed bytes are given, but {cls.kind} weights of {rows} x "
                f"{columns} with check rows of {digits} digits take {expected}. Give all of "
                "`packed`, with `shape` and `geometry.digits` of the matrix that it is of."
            )
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
        the result is of x's kind and number format unless ``out`` is given. x is copied where
        ``out`` overlaps it; an ``out`` over what products with this matrix read is refused. Each
        token is quantised to int8 by its greatest magnitude (at least 1e-5), the products are
        exact integers, and one multiplication by the two scales ends it. A token with NaN or an
        infinity gives NaN.

        ``verify="always"`` checks every product. On an alarm the incident is kept and told and, by
        ``on_fault``: "raise" raises; "mark" writes NaN over the tokens' outputs; "recompute"
        computes again, once; "repair" first restores packed bytes and scales. What still fails
        raises IntegrityError, after NaN was written over the outputs concerned. ``drills`` flips
        bits on the way, for tests.

        Raises TypeError and ValueError for arrays that do not fit.
        """
        require_words(verify, on_fault)
        rows, columns = self.shape
        source = operands.activations(x, columns)
        shape = (*source.array.shape[:-1], rows)
        if out is None:
            target = operands.new_output(source, shape)
        else:
            target = operands.output(out, shape)
            operands.require_apart(target, self._own, self.name)
            source = operands.apart(source, target)
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a matrix of its own memory; raises ValueError for one that is damaged."""
        if self.check().findings:
            raise ValueError(f"{self.name!r:.200} is damaged: repair() it before copying")
        packed = packed_bytes(self.packed.nbytes)
        packed[:] = self.packed
        golden = f".{PACKED}" in self._record.copies.tensors
        return type(self)(packed, self.scales, self.geometry, name=self.name, golden=golden)

    def __reduce__(self) -> str:
        raise TypeError(
            f"{self.name!r:.200} is packed in memory of its own and is not pickled. Keep the "
            "weights from which it was packed, or the folder of `weightguard ternarize`."
        )

    def witness(self, watcher: Watcher) -> Callable[[], None]:
        """Have ``watcher`` called with the findings of each alarm; return what ends that.

        It says what they are instead of the log.
        """
        self._watchers = (*self._watchers, watcher)

        def end() -> None:
            self._watchers = tuple(other for other in self._watchers if other is not watcher)

        return end

    def reads(self, *memories: Memory) -> None:
        """Refuse outputs over these, too, from now on: a layer reads them beside the matrix."""
        self._own += memories

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


def require_words(verify: str, on_fault: str) -> None:
    """Raise ValueError for words that ``PackedMatrix.linear`` does not know."""
    if verify not in ("always", "off"):
        raise ValueError(f"verify is {verify!r:.40}; it must be 'always' or 'off'")
    if on_fault not in ON_FAULT:
        raise ValueError(f"on_fault is {on_fault!r:.40}; it must be one of {ON_FAULT}")


def _log(name: str, found: Finding) -> None:
    # names come from files: nothing of them may look like another line
    line = f"{found.rule} {name:.200}: {found.message}"
    LOGGER.critical("%s", "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))
