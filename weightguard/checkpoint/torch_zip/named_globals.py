"""The globals that a refused pickle names, found by reading its opcodes one by one.

The machine stops at the first thing that PyTorch never writes. What a reader wants to know then is
what the pickle would have run, which may come later. Here opcodes are stepped over by the lengths
that Python's own table (``pickletools``) gives; nothing is kept but strings that may be names.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field

from weightguard.checkpoint.torch_zip.builders import ALLOWED

MAX_OPCODES_SKIMMED = 2_000_000
"""Opcodes read after a refusal; a second or two."""
MAX_STRINGS_KEPT = 200_000
MAX_NAME_BYTES = 4096
"""Bytes that are kept of each half of a name."""

MODULES = {"__builtin__": "builtins", "torch.tensor": "torch._tensor"}
"""Modules by the names they had in Python 2 and early PyTorch."""

_LENGTHS = {ord(opcode.code): opcode.arg.n if opcode.arg else 0 for opcode in pickletools.opcodes}
_LINE, _SIZE_1, _SIZE_4S, _SIZE_4U, _SIZE_8 = -1, -2, -3, -4, -5
_WIDTHS = {_SIZE_1: 1, _SIZE_4S: 4, _SIZE_4U: 4, _SIZE_8: 8}
_TWO_LINES = frozenset(b"ci")
_TEXTS = frozenset(b"SVTUX\x8c\x8d")
_PUTS, _GETS = frozenset(b"pqr"), frozenset(b"ghj")
_MEMOIZE, _STACK_GLOBAL, _STOP = 0x94, 0x93, ord(".")


def global_name(module: str, name: str) -> str:
    """Return a global's dotted name of bounded length, as the allow-list spells it."""
    return f"{MODULES.get(module, module)[:MAX_NAME_BYTES]}.{name[:MAX_NAME_BYTES]}"


def named_globals(data: bytes, pickles: int = 1) -> Iterator[tuple[str, int]]:
    """Yield the globals in ``data`` that are not on the allow-list, and their opcodes' places.

    Up to ``pickles`` pickles that follow each other are read, and no further than to the first
    byte that is no opcode. Never raises.
    """
    skim = _Skim(data)
    for _ in range(MAX_OPCODES_SKIMMED):
        place = skim.place
        code = data[place] if place < len(data) else _STOP
        named = skim.step(code)
        if skim.is_lost:
            return
        if named is not None and named not in ALLOWED:
            yield named, place
        if code == _STOP:
            pickles -= 1
            if pickles == 0 or skim.place >= len(data):
                return
            skim = _Skim(data, skim.place)


@dataclass(slots=True)
class _Skim:
    """Where the reading stands, and the strings that a later opcode may make a name of."""

    data: bytes
    place: int = 0
    is_lost: bool = False
    memo: dict[int, str] = field(default_factory=dict)
    recent: tuple[str, str] = ("", "")
    memoized: int = 0

    def step(self, code: int) -> str | None:
        """Step over one opcode and return the global that it names, if any."""
        length = _LENGTHS.get(code)
        self.place += 1
        if length is None:
            self.is_lost = True
            return None
        if code in _TWO_LINES:
            return global_name(self._line(), self._line())
        argument = self._argument(length)
        if code in _TEXTS:
            self.recent = (self.recent[1], _text(argument))
        elif code in _PUTS:
            self._keep(_index(argument, code))
        elif code == _MEMOIZE:
            self._keep(self.memoized)
            self.memoized += 1
        elif code in _GETS:
            known = self.memo.get(_index(argument, code))
            self.recent = self.recent if known is None else (self.recent[1], known)
        return global_name(*self.recent) if code == _STACK_GLOBAL else None

    def _keep(self, index: int) -> None:
        if len(self.memo) < MAX_STRINGS_KEPT:
            self.memo[index] = self.recent[1]

    def _argument(self, length: int) -> bytes:
        """Return the beginning of an opcode's argument."""
        if length == _LINE:
            return self._line().encode(errors="replace")
        if length < 0:
            width = _WIDTHS[length]
            head = self.data[self.place : self.place + width]
            self.place += width
            length = int.from_bytes(head, "little")
        piece = self.data[self.place : self.place + min(length, MAX_NAME_BYTES)]
        self.place += length
        self.is_lost = self.place > len(self.data)
        return piece

    def _line(self) -> str:
        end = self.data.find(b"\n", self.place)
        if end < 0:
            self.is_lost = True
            return ""
        text = _text(self.data[self.place : min(end, self.place + MAX_NAME_BYTES)])
        self.place = end + 1
        return text


def _text(raw: bytes) -> str:
    return raw.strip(b"'\"").decode(errors="backslashreplace")


def _index(argument: bytes, code: int) -> int:
    if code in b"pg":
        return int(argument) if argument.isdigit() and len(argument) < 10 else -1
    return int.from_bytes(argument, "little")
