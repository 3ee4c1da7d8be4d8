"""Values of the right type that name nothing, or contradict each other."""

from __future__ import annotations

import functools
import re

from weightguard.errors import WeightguardError
from weightguard.policy.document import Policy, size_in_bytes
from weightguard.policy.problems import Keys, Problems, hint
from weightguard.rules.selection import Selection
from weightguard.superweights.published import load_registry
from weightguard.tensor import DTYPES


def check_meaning(policy: Policy, problems: Problems) -> None:
    """Raise PolicyError for values of the right type that name nothing or contradict each other."""
    _check_codes(policy, problems)
    for dtype in policy.allow.dtypes or ():
        if dtype not in DTYPES:
            raise problems.at(
                ("allow", "dtypes"),
                f"names {dtype[:100]!r}, which is no dtype{hint(dtype, DTYPES)}",
            )
    for key in ("file_size", "total_size"):
        size = getattr(policy.limits, key)
        try:
            size_in_bytes(size or 0)
        except ValueError as error:
            raise problems.at(("limits", key.replace("_", "-")), f"is wrong: {error}.") from error
    if policy.super_weights is not None:
        _check_lineage(policy.super_weights.lineage, problems)
    if policy.signature is not None:
        _check_signature(policy, problems)
    if policy.calibration is not None and policy.calibration.required and policy.manifest is None:
        raise problems.at(("calibration",), "is in a manifest, and [manifest] names none.")
    _check_manifest(policy, problems)


def _check_codes(policy: Policy, problems: Problems) -> None:
    rules = policy.rules
    places: list[tuple[Keys, str]] = [
        *((("rules", "select"), code) for code in rules.select),
        *((("rules", "ignore"), code) for code in rules.ignore),
        *((("rules", "severity", code), code) for code in rules.severity),
    ]
    for number, exception in enumerate(rules.tensor):
        table: Keys = ("rules", "tensor", number)
        places += [((*table, "ignore"), code) for code in exception.ignore]
        places += [((*table, "severity", code), code) for code in exception.severity]
    for keys, code in places:
        objection = _objection(code)
        if objection is not None:
            raise problems.at(keys, f"is wrong: {objection}")
    try:
        Selection.of(rules.select, rules.ignore)
    except WeightguardError as error:
        raise problems.at(("rules",), f"leave nothing: {error}") from error


@functools.lru_cache(1024)
def _objection(code: str) -> str | None:
    """Return why ``code`` selects no rule, or None."""
    try:
        Selection.of([code])
    except WeightguardError as error:
        return str(error)
    return None


def _check_manifest(policy: Policy, problems: Problems) -> None:
    selection = Selection.of(policy.rules.select, policy.rules.ignore)
    if policy.manifest is not None and not selection.any_of("WG401"):
        raise problems.at(
            ("manifest",), "is compared with by WG401, which [rules] does not select: select it."
        )
    if policy.manifest is not None and "{" in re.sub(
        r"\{(checkpoint|name)\}", "", policy.manifest.path
    ):
        raise problems.at(
            ("manifest", "path"), "may hold {checkpoint} and {name}, and no other braces."
        )


def _check_lineage(lineage: str, problems: Problems) -> None:
    known = [base.model for base in load_registry().bases]
    if lineage not in known:
        raise problems.at(
            ("super-weights", "lineage"),
            f"names {lineage[:100]!r}{hint(lineage, known)} Known are {', '.join(known)}.",
        )


def _check_signature(policy: Policy, problems: Problems) -> None:
    rule = policy.signature
    assert rule is not None
    ways = [rule.public_key, rule.certificates, rule.identity]
    if sum(way is not None for way in ways) != 1:
        raise problems.at(
            ("signature",), "needs one of public-key, certificates and identity: who signed."
        )
    if (rule.identity is None) != (rule.identity_provider is None):
        raise problems.at(("signature",), "needs identity and identity-provider together.")
