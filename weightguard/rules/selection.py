"""Which rules apply: codes or prefixes of codes, selected and ignored as in a linter."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weightguard.catalogue import RULES
from weightguard.errors import WeightguardError
from weightguard.finding import Finding


@dataclass(frozen=True, slots=True)
class Selection:
    """The rules that count: those selected (all, when none is named) and not ignored."""

    codes: frozenset[str]

    @classmethod
    def of(cls, select: Sequence[str] = (), ignore: Sequence[str] = ()) -> Selection:
        """Return the selection of code prefixes; WeightguardError names an unknown one."""
        chosen = _expand(select) if select else frozenset(RULES)
        return cls(chosen - _expand(ignore))

    def any_of(self, prefix: str | tuple[str, ...]) -> bool:
        """Return whether any rule is selected whose code starts with ``prefix``, or one of them."""
        return any(code.startswith(prefix) for code in self.codes)

    def keep(self, findings: Iterable[Finding]) -> list[Finding]:
        """Return the findings of selected rules."""
        return [found for found in findings if found.rule in self.codes]


def _expand(prefixes: Sequence[str]) -> frozenset[str]:
    codes: set[str] = set()
    for prefix in prefixes:
        matching = {code for code in RULES if prefix and code.startswith(prefix.upper())}
        if not matching:
            close = difflib.get_close_matches(prefix.upper(), RULES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise WeightguardError(
                f"no rule has the code {prefix[:100]!r}{hint} `weightguard rules` lists them."
            )
        codes |= matching
    return frozenset(codes)
