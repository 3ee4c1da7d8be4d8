"""From a file to a policy: found in the open, read within bounds, every mistake named.

A policy is never looked for in the checkpoint's folder: whoever can write there would judge
himself.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from weightguard.errors import WeightguardError
from weightguard.policy.document import Policy, PolicyError, size_in_bytes
from weightguard.policy.places import home_of
from weightguard.rules.selection import Selection
from weightguard.superweights.published import load_registry
from weightguard.tensor import DTYPES

POLICY_NAME = "weightguard.toml"
PROJECT_NAME = "pyproject.toml"
TEMPLATE = "template.toml"
MAX_POLICY_BYTES = 1 << 20
MAX_PARENTS = 64


def find_policy(checkpoint: Path, start: Path | None = None) -> Path:
    """Return the policy of the folder ``start`` (the current one) or of its nearest parent.

    Parents are looked at up to the root of the repository; without a repository, only ``start``.
    ``weightguard.toml`` goes before a ``pyproject.toml`` with a table ``tool.weightguard``.
    Raises PolicyError where there is none, or only one in the checkpoint's own folder.
    """
    untrusted = home_of(checkpoint)
    refused: Path | None = None
    for folder in _upwards((Path.cwd() if start is None else start).resolve()):
        found = _policy_in(folder)
        if found is None:
            continue
        if not folder.is_relative_to(untrusted):
            return found
        refused = refused or found
    if refused is not None:
        raise PolicyError(
            f"{str(refused)!r} lies with the checkpoint that it is to judge, so it is not taken. "
            "Keep the policy elsewhere, or name it with --policy if you trust it."
        )
    raise PolicyError(
        f"there is no policy: no {POLICY_NAME}, and no [tool.weightguard] in {PROJECT_NAME}, in "
        "this folder or above it in its repository. `weightguard gate --init` writes one."
    )


def read_policy(path: Path) -> Policy:
    """Read and check a policy file. Raises PolicyError, which names the key, and its line."""
    return parse_policy(_read_text(path), path)


def parse_policy(text: str, path: Path) -> Policy:
    """Return the policy in ``text``; ``path`` says what errors name, and whether it is nested."""
    problems = _Problems(text, path)
    try:
        data: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{problems.file} is no TOML: {error}.") from error
    except RecursionError as error:
        raise PolicyError(f"{problems.file} is nested too deeply.") from error
    if path.name == PROJECT_NAME:
        problems.prefix = ("tool", "weightguard")
        tool = data.get("tool")
        data = tool.get("weightguard") if isinstance(tool, dict) else None
        if not isinstance(data, dict):
            raise PolicyError(f"{problems.file} has no table [tool.weightguard].")
    _check_version(data, problems)
    _check_keys(data, Policy, (), problems)
    try:
        policy = msgspec.convert(data, Policy)
    except msgspec.ValidationError as error:
        raise problems.invalid(error) from error
    _check_meaning(policy, problems)
    return policy


def write_template(path: Path) -> None:
    """Write the commented policy to ``path``. Raises PolicyError; never replaces anything."""
    data = resources.files("weightguard.policy").joinpath(TEMPLATE).read_bytes()
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise PolicyError(f"{str(path)!r} exists already; it was left as it is.") from error
    except OSError as error:
        raise PolicyError(f"cannot write {str(path)!r}: {error.strerror}.") from error


def lies_with(policy: Path, checkpoint: Path) -> bool:
    """Return whether a policy lies in the folder of the checkpoint that it judges."""
    return policy.resolve().is_relative_to(home_of(checkpoint))


def _upwards(start: Path) -> Iterator[Path]:
    """Yield ``start`` and its parents up to the repository's root; only ``start`` without one."""
    folders = [start, *start.parents][:MAX_PARENTS]
    root = next((n for n, folder in enumerate(folders) if (folder / ".git").exists()), 0)
    yield from folders[: root + 1]


def _policy_in(folder: Path) -> Path | None:
    own, project = folder / POLICY_NAME, folder / PROJECT_NAME
    # also where it is no file: then reading it says so
    if os.path.lexists(own):
        return own
    if not project.is_file():
        return None
    try:
        tool = tomllib.loads(_read_text(project)).get("tool")
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{str(project)!r} is no TOML: {error}.") from error
    return project if isinstance(tool, dict) and "weightguard" in tool else None


def _read_text(path: Path) -> str:
    try:
        # a FIFO must not be waited for
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no file can have this name"
        raise PolicyError(f"cannot read the policy {str(path)!r}: {reason}.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PolicyError(f"the policy {str(path)!r} is no regular file.")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_POLICY_BYTES + 1)
    if len(data) > MAX_POLICY_BYTES:
        raise PolicyError(
            f"the policy {str(path)!r} has more than {MAX_POLICY_BYTES} bytes: it is none."
        )
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise PolicyError(
            f"the policy {str(path)!r} is no UTF-8 text: byte {error.start}."
        ) from error


class _Problems:
    """Turns what is wrong with a policy into errors that say where."""

    def __init__(self, text: str, path: Path):
        self.file = repr(str(path))
        self.prefix: tuple[str, ...] = ()
        self._text = text

    def at(self, keys: tuple[str, ...], words: str) -> PolicyError:
        """Return the error for the value at ``keys``."""
        line = self._line((*self.prefix, *keys))
        where = f", line {line}" if line else ""
        return PolicyError(f"{self.file}{where}: {'.'.join(keys) or 'the policy'} {words}")

    def invalid(self, error: msgspec.ValidationError) -> PolicyError:
        """Return the error for what msgspec says of a value."""
        words, _, place = str(error).partition(" - at `$")
        keys = tuple(re.findall(r"[A-Za-z0-9_-]+", re.sub(r"\[[^\]]*\]", "", place)))
        return self.at(keys, f"is not valid: {words[0].lower()}{words[1:]}.")

    def _line(self, keys: tuple[str, ...]) -> int | None:
        """Return the line that gives ``keys`` a value, or None where it cannot be told."""
        table: tuple[str, ...] = ()
        for number, line in enumerate(self._text.split("\n"), 1):
            header = re.match(r"\s*\[\[?([^\[\]]+)\]", line)
            if header:
                table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
                if table == keys:
                    return number
            key = re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line)
            if key and (*table, *(p.strip("\"'") for p in key[1].split("."))) == keys:
                return number
        return None


def _check_version(data: Mapping[str, Any], problems: _Problems) -> None:
    version = data.get("version", 1)
    if isinstance(version, int) and not isinstance(version, bool) and version > 1:
        raise problems.at(
            ("version",), f"is {version}, which this weightguard is too old for: update it."
        )


def _check_keys(
    data: object, kind: type[msgspec.Struct], keys: tuple[str, ...], problems: _Problems
) -> None:
    """Raise PolicyError for a key that no table of its kind has."""
    if not isinstance(data, dict):
        return
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in data.items():
        if key not in fields:
            hint = _meant(key, fields)
            raise problems.at((*keys, key), f"is no key of a policy{hint}.")
        inner = table_of(fields[key])
        if inner is not None:
            for entry in value if isinstance(value, list) else [value]:
                _check_keys(entry, inner, (*keys, key), problems)


def table_of(kind: Any) -> type[msgspec.Struct] | None:
    """Return the table that a field holds, alone, optional or in a list."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    if typing.get_origin(kind) in (tuple, typing.Union, types.UnionType):
        return next((t for t in map(table_of, typing.get_args(kind)) if t is not None), None)
    return None


def _meant(word: str, known: Iterable[str]) -> str:
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold()[:100], folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def _check_meaning(policy: Policy, problems: _Problems) -> None:
    """Raise PolicyError for values of the right type that name nothing or contradict each other."""
    _check_codes(policy, problems)
    for dtype in policy.allow.dtypes or ():
        if dtype not in DTYPES:
            raise problems.at(
                ("allow", "dtypes"),
                f"names {dtype[:100]!r}, which is no dtype{_meant(dtype, DTYPES)}.",
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


def _check_codes(policy: Policy, problems: _Problems) -> None:
    rules = policy.rules
    places: list[tuple[tuple[str, ...], Iterable[str]]] = [
        (("rules", "select"), rules.select),
        (("rules", "ignore"), rules.ignore),
        (("rules", "severity"), rules.severity),
    ]
    for exception in rules.tensor:
        places.append((("rules", "tensor", "ignore"), exception.ignore))
        places.append((("rules", "tensor", "severity"), exception.severity))
    for keys, codes in places:
        for code in codes:
            try:
                Selection.of([code])
            except WeightguardError as error:
                raise problems.at(keys, f"is wrong: {error}") from error
    try:
        Selection.of(rules.select, rules.ignore)
    except WeightguardError as error:
        raise problems.at(("rules",), f"leave nothing: {error}") from error


def _check_manifest(policy: Policy, problems: _Problems) -> None:
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


def _check_lineage(lineage: str, problems: _Problems) -> None:
    known = [base.model for base in load_registry().bases]
    if lineage not in known:
        raise problems.at(
            ("super-weights", "lineage"),
            f"names {lineage[:100]!r}{_meant(lineage, known)} Known are {', '.join(known)}.",
        )


def _check_signature(policy: Policy, problems: _Problems) -> None:
    rule = policy.signature
    assert rule is not None
    ways = [rule.public_key, rule.certificates, rule.identity]
    if sum(way is not None for way in ways) != 1:
        raise problems.at(
            ("signature",), "needs one of public-key, certificates and identity: who signed."
        )
    if (rule.identity is None) != (rule.identity_provider is None):
        raise problems.at(("signature",), "needs identity and identity-provider together.")
