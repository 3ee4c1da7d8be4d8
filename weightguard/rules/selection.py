"""Which rules apply: codes or prefixes of codes, selected and ignored as in a linter."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from weightguard.catalogue import RULES
from weightguard.errors import WeightguardError
from weightguard.finding import Finding

Codes: TypeAlias = str | Sequence[str]
"""Codes or their beginnings: ("WG2", "WG101") or "WG2,WG101"."""


COMPARING = ("WG305", "WG306", "WG4")
"""Beginnings of the codes of rules that compare with a manifest."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The rules that count: those selected (all, when none is named) and not ignored."""

    codes: frozenset[str]

    @classmethod
    def of(cls, select: Codes = (), ignore: Codes = ()) -> Selection:
        """Return the selection of code prefixes, or of one text of them separated by commas.

        Raises WeightguardError, which names an unknown code, or says that no rule is left.
        """
        chosen = _expand(_codes(select)) if select else frozenset(RULES)
        left = chosen - _expand(_codes(ignore))
        if not left:
            raise WeightguardError("the rules selected are all ignored: nothing would be checked.")
        return cls(left)

    def any_of(self, prefix: str | tuple[str, ...]) -> bool:
        """Return whether any rule is selected whose code starts with ``prefix``, or one of them."""
        return any(code.startswith(prefix) for code in self.codes)

    def require_other_than_comparing(self) -> None:
        """Raise WeightguardError where every rule needs a manifest: for where there is none."""
        if all(code.startswith(COMPARING) for code in self.codes):
            raise WeightguardError(
                f"the selected rules compare with a manifest ({', '.join(sorted(self.codes))}), "
                "and none is given: nothing would be checked."
            )

    def keep(self, findings: Iterable[Finding]) -> list[Finding]:
        """Return the findings of selected rules."""
        return [found for found in findings if found.rule in self.codes]


def _codes(codes: Codes) -> Sequence[str]:
    return [code.strip() for code in codes.split(",")] if isinstance(codes, str) else codes


def _expand(prefixes: Sequence[str]) -> frozenset[str]:
    codes: set[str] = set()
    for prefix in prefixes:
        matching = {code for code in RULES if prefix and code.startswith(prefix.upper())}
        if not matching:
            close = difflib.get_close_matches(prefix.upper(), RULES, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise WeightguardError(
                f"no rule has the code {prefix[:100]!r}{hint} `weightguard rules` lists them."
            )
        codes |= matching
    return frozenset(codes)
