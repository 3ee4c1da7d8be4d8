"""A pickle machine for the opcodes that PyTorch writes, which never imports and never calls out.

Globals are looked up in an allow-list of inert builders (``builders``). Dictionaries are
kept as lists of pairs and nothing read from the pickle is hashed, compared or printed, so nested
tuples and colliding keys cost nothing. Source: the opcode table of Python's ``pickletools``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Any

from weightguard.checkpoint.torch_zip.builders import (
    ALLOWED,
    BUILDERS,
    ArgumentError,
    Items,
    Symbol,
)
from weightguard.checkpoint.torch_zip.builders import storage as storage_of
from weightguard.checkpoint.torch_zip.named_globals import (
    MAX_NAME_BYTES,
    global_name,
    named_globals,
)
from weightguard.errors import CheckpointError, malformed
from weightguard.units import counted

MAX_PICKLE_BYTES = 64 << 20
MAX_OPCODES = 6_000_000
MAX_OBJECTS = 1_500_000
"""Containers, descriptors and strings; a checkpoint of 100,000 tensors has about 1,000,000."""
MAX_MARKS = 1000
MAX_GLOBALS_KEPT = 1000
MAX_GLOBALS_NAMED = 8
PROTOCOLS = range(2, 6)


class _Foreign:
    """Stands for a refused global and for whatever it would have made."""


_FOREIGN = _Foreign()
_UNSET = object()


def listed(names: Collection[str]) -> str:
    """Return the first few refused globals as a message may hold them, and how many more."""
    shown = ", ".join(f"{_shortened(name)!r:.100}" for name in islice(names, MAX_GLOBALS_NAMED))
    more = len(names) - MAX_GLOBALS_NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def _shortened(name: str) -> str:
    """Return a name of at most 80 characters: the module's beginning, and what is asked of it."""
    return name if len(name) <= 80 else f"{name[:40]}...{name[-37:]}"


def _cut_text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def read_pickle(data: bytes, *, file: str, offset: int) -> Any:
    """Return the value of a pickle as plain values and the descriptors of ``builders``.

    ``offset`` is where ``data`` lies in ``file``. Raises CheckpointError: WG112 for every global
    or opcode that is not on the allow-list (all refused globals are named), WG103 for a pickle
    that is not well formed, WG116 above a limit.
    """
    return _Machine(data, file, offset).run()


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, data: bytes, file: str, offset: int):
        self._data, self._file, self._offset = data, file, offset
        self._place = 0
        self._opcode = 0
        self._objects = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._refused: dict[str, int] = {}

    def run(self) -> Any:
        if len(self._data) > MAX_PICKLE_BYTES:
            raise self._error("WG116", f"the pickle has {len(self._data)} bytes")
        try:
            value = self._interpret()
        except ArgumentError as error:
            problem = self._error("WG103", f"the pickle is malformed: {error}")
            self._look_ahead()
            raise self._refusal() or problem from error
        except CheckpointError as error:
            self._look_ahead()
            refusal = self._refusal()
            if refusal is not None:
                raise refusal from error
            raise
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        return value

    def _look_ahead(self) -> None:
        """Note what the pickle names after the point where it is refused."""
        for name, place in islice(named_globals(self._data), MAX_GLOBALS_KEPT):
            self._refused.setdefault(name, place)

    def _interpret(self) -> Any:
        for _ in range(MAX_OPCODES):
            self._opcode = self._place
            code = self._take(1)[0]
            if code == _STOP:
                return self._stop()
            step = _STEPS.get(code)
            if step is None:
                raise self._error(
                    "WG112", f"the pickle uses opcode {code:#04x}, which PyTorch never writes"
                )
            step(self)
        raise self._error("WG116", f"the pickle has more than {MAX_OPCODES} opcodes")

    def _stop(self) -> Any:
        value = self._pop()
        if self._stack or self._marks:
            raise self._error("WG103", "the pickle leaves values on its stack")
        if self._place != len(self._data):
            left = counted(len(self._data) - self._place, "byte")
            raise self._error("WG103", f"the pickle ends {left} before its record does")
        return value

    def _error(self, code: str, message: str) -> CheckpointError:
        return malformed(code, message, file=self._file, offset=self._offset + self._opcode)

    def _refusal(self) -> CheckpointError | None:
        """Return the error that names the refused globals, if there are any."""
        if not self._refused:
            return None
        self._opcode = min(self._refused.values())
        return self._error(
            "WG112", f"the pickle asks for {listed(self._refused)}; nothing of it was run"
        )

    # -- reading ----------------------------------------------------------------------------

    def _take(self, length: int) -> bytes:
        end = self._place + length
        if end > len(self._data):
            raise self._error("WG103", "the pickle ends inside an opcode")
        piece = self._data[self._place : end]
        self._place = end
        return piece

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise self._error("WG103", "a string of the pickle is not UTF-8") from error

    def _line(self) -> str:
        end = self._data.find(b"\n", self._place)
        if end < 0:
            raise self._error("WG103", "a global's name has no end")
        # a longer name than any on the allow-list is still a name, and named cut
        text = _cut_text(self._data[self._place : min(end, self._place + MAX_NAME_BYTES)])
        self._place = end + 1
        return text

    # -- the stack --------------------------------------------------------------------------

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self._error("WG103", "the pickle takes more from its stack than there is")
        return self._stack.pop()

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _since_mark(self) -> list[Any]:
        if not self._marks:
            raise self._error("WG103", "the pickle refers to a mark that it did not set")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _make(self, value: Any) -> None:
        self._objects += 1
        if self._objects > MAX_OBJECTS:
            raise self._error("WG116", f"the pickle has more than {MAX_OBJECTS} objects")
        self._stack.append(value)

    # -- opcodes ----------------------------------------------------------------------------

    def _protocol(self) -> None:
        version = self._unsigned(1)
        if self._opcode != 0 or version not in PROTOCOLS:
            raise self._error("WG103", f"the pickle has protocol {version}")

    def _frame(self) -> None:
        if self._unsigned(8) > len(self._data) - self._place:
            raise self._error("WG103", "a frame reaches beyond the pickle")

    def _mark(self) -> None:
        if len(self._marks) >= MAX_MARKS:
            raise self._error("WG116", f"the pickle nests more than {MAX_MARKS} marks")
        self._marks.append(len(self._stack))

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._make(tuple(reversed(items)))

    def _long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._unsigned(1)), "little", signed=True))

    def _bytes(self, width: int) -> None:
        self._make(self._take(self._unsigned(width)))

    def _unicode(self, width: int) -> None:
        self._make(self._text(self._unsigned(width)))

    def _append(self, items: Sequence[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif target is not _FOREIGN:
            raise self._error("WG112", "the pickle appends to something else than a list")

    def _set_items(self, items: Sequence[Any]) -> None:
        target = self._top()
        if len(items) % 2:
            raise self._error("WG103", "the pickle sets a key without a value")
        if isinstance(target, Items):
            target.pairs.extend(zip(items[::2], items[1::2], strict=True))
        elif target is not _FOREIGN:
            raise self._error("WG112", "the pickle sets items of something else than a dictionary")

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items((key, value))

    def _put(self, index: int) -> None:
        value = self._top()
        # picklers number their memo without gaps, some from one
        if index > len(self._memo) + 1:
            raise self._error("WG116", f"the pickle skips to memo slot {index}")
        while len(self._memo) <= index:
            self._memo.append(_UNSET)
        self._memo[index] = value

    def _get(self, index: int) -> None:
        if index >= len(self._memo) or self._memo[index] is _UNSET:
            raise self._error("WG103", f"the pickle reads memo slot {index} before it is set")
        self._stack.append(self._memo[index])

    def _global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self._error("WG112", "the pickle computes the name of a global")
        full = global_name(module, name)
        if full in ALLOWED:
            self._make(Symbol(full))
        else:
            if len(self._refused) < MAX_GLOBALS_KEPT:
                self._refused.setdefault(full, self._opcode)
            self._stack.append(_FOREIGN)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._global(module, name)

    def _reduce(self) -> None:
        args, function = self._pop(), self._pop()
        if function is _FOREIGN:
            self._stack.append(_FOREIGN)
            return
        builder = BUILDERS.get(function.name) if isinstance(function, Symbol) else None
        if builder is None:
            name = function.name if isinstance(function, Symbol) else "something else"
            raise self._error("WG112", f"the pickle calls {name!r:.100}, which is no function")
        if not isinstance(args, tuple):
            raise self._error("WG103", "the pickle calls a global without arguments")
        self._make(builder(args))

    def _new(self) -> None:
        _, class_ = self._pop(), self._pop()
        if class_ is not _FOREIGN:
            raise self._error("WG112", "the pickle makes an object of a class")
        self._stack.append(_FOREIGN)

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Items) and isinstance(state, Items | tuple | _Foreign):
            target.attributes = state
        elif target is not _FOREIGN:
            raise self._error("WG112", "the pickle sets the state of an object")

    def _persistent(self) -> None:
        self._make(storage_of(self._pop()))

    def _number(self, layout: str) -> None:
        self._stack.append(struct.unpack(layout, self._take(struct.calcsize(layout)))[0])


_STOP = ord(".")
_STEPS: dict[int, Callable[[_Machine], None]] = {
    ord(code): step
    for code, step in {
        "\x80": _Machine._protocol,
        "\x95": _Machine._frame,
        "(": _Machine._mark,
        "N": lambda m: m._push(None),
        "\x88": lambda m: m._push(True),
        "\x89": lambda m: m._push(False),
        "J": lambda m: m._number("<i"),
        "K": lambda m: m._number("<B"),
        "M": lambda m: m._number("<H"),
        "G": lambda m: m._number(">d"),
        "\x8a": _Machine._long,
        "X": lambda m: m._unicode(4),
        "\x8c": lambda m: m._unicode(1),
        "U": lambda m: m._bytes(1),
        "C": lambda m: m._bytes(1),
        "B": lambda m: m._bytes(4),
        ")": lambda m: m._push(()),
        "\x85": lambda m: m._tuple(1),
        "\x86": lambda m: m._tuple(2),
        "\x87": lambda m: m._tuple(3),
        "t": lambda m: m._make(tuple(m._since_mark())),
        "]": lambda m: m._make([]),
        "}": lambda m: m._make(Items()),
        "\x8f": lambda m: m._make([]),
        "a": lambda m: m._append((m._pop(),)),
        "e": lambda m: m._append(m._since_mark()),
        "\x90": lambda m: m._append(m._since_mark()),
        "s": _Machine._set_item,
        "u": lambda m: m._set_items(m._since_mark()),
        "q": lambda m: m._put(m._unsigned(1)),
        "r": lambda m: m._put(m._unsigned(4)),
        "\x94": lambda m: m._put(len(m._memo)),
        "h": lambda m: m._get(m._unsigned(1)),
        "j": lambda m: m._get(m._unsigned(4)),
        "c": lambda m: m._global(m._line(), m._line()),
        "\x93": _Machine._stack_global,
        "Q": _Machine._persistent,
        "R": _Machine._reduce,
        "\x81": _Machine._new,
        "b": _Machine._build,
    }.items()
}
