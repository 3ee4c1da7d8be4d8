"""Small live memory that a layer reads beside its packed matrix, compared with a copy at each use.

It is little, so the comparison is of every bit. A keyed digest tells which of both changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from weightguard.errors import IntegrityError
from weightguard.finding import Coverage, Finding
from weightguard.guard.baseline import Key
from weightguard.guard.incident import report
from weightguard_integrations.ternary.incident import Action, Alarm, product_finding
from weightguard_integrations.ternary.matrix import OnFault, PackedMatrix, Verify
from weightguard_integrations.ternary.operands import Memory

Tell: TypeAlias = Callable[[bytes, bytes], Finding]
"""Says what changed, of the bytes as they were and as they are."""


class Compared:
    """Arrays whose bytes, one array after the other, must stay what they are now.

    A guard covers the same memory; ``use`` gives what was held, or says that it is not there any
    more. Outputs over it are refused.
    """

    def __init__(
        self, matrix: PackedMatrix, what: str, arrays: tuple[NDArray[np.uint8], ...],
        alarm: Alarm, tell: Tell,
    ):  # fmt: skip
        """Hold ``arrays`` (uint8 [n], contiguous), which ``what`` names; they are believed."""
        self._matrix, self._alarm, self._tell = matrix, alarm, tell
        self._live = tuple(array.data for array in arrays)
        self._key, self._copy = Key(), bytes(self._read())
        self._digest = self._key.digest(memoryview(self._copy))
        matrix.reads(*(Memory(what, array) for array in arrays))

    def use(self, tokens: int, verify: Verify, on_fault: OnFault) -> bytearray | None:
        """Return the bytes for a product of ``tokens``; None if its outputs must be marked.

        The same bytes are compared and returned, in memory of their own. Damage is an incident; by
        ``on_fault`` it is repaired from the copy, read again, marked or raised as IntegrityError.
        Unchecked, the bytes are returned as they are.
        """
        data = self._read()
        if data == self._copy or verify == "off":
            return data
        return self._recover(data, tokens, on_fault)

    def _recover(self, data: bytearray, tokens: int, on_fault: OnFault) -> bytearray | None:
        if self._key.digest(memoryview(data)) == self._digest:
            self._copy = bytes(data)  # it is the copy that changed
            return data
        action: Action = "raised"
        if on_fault == "mark":
            action = "marked"
        elif on_fault == "repair" and self._copy_is_sound():
            self._write(self._copy)
            action = "repaired"
        elif on_fault == "recompute" and self._read() == self._copy:
            action = "recomputed"
        matrix = self._matrix
        stored = self._tell(self._copy, bytes(data))
        alarms = bytes([self._alarm]) * tokens
        incidents = matrix.note([product_finding(matrix.name, alarms, [stored], action), stored])
        if action == "raised":
            coverage = Coverage(1, 1, len(data), len(data))
            raise IntegrityError(report(matrix.name, incidents, coverage))
        return None if action == "marked" else bytearray(self._copy)

    def _copy_is_sound(self) -> bool:
        return self._key.digest(memoryview(self._copy)) == self._digest

    def _read(self) -> bytearray:
        return bytearray().join(self._live)

    def _write(self, data: bytes) -> None:
        start = 0
        for live in self._live:
            live[:] = data[start : start + live.nbytes]
            start += live.nbytes
