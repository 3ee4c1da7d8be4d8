"""From a file to a policy: found in the open, read within bounds, every mistake named.

A policy is never looked for in the checkpoint's folder: whoever can write there would judge
himself.
"""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from weightguard.policy.document import Policy, PolicyError
from weightguard.policy.meaning import check_meaning
from weightguard.policy.places import home_of
from weightguard.policy.problems import Keys, Problems, hint
from weightguard.policy.source import parse_toml, read_text

POLICY_NAME = "weightguard.toml"
PROJECT_NAME = "pyproject.toml"
NESTED = ("tool", "weightguard")
"""The table of a project's file that holds the policy."""

TEMPLATE = "template.toml"
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
    missing = "" if checkpoint.exists() else f"there is no checkpoint {str(checkpoint)!r}, and "
    raise PolicyError(
        f"{missing}there is no policy: no {POLICY_NAME}, and no [tool.weightguard] in "
        f"{PROJECT_NAME}, in this folder or above it in its repository. "
        "`weightguard gate --init` writes one."
    )


def read_policy(path: Path) -> Policy:
    """Read and check a policy file. Raises PolicyError, which names the key, and its line."""
    return parse_policy(read_text(path), path)


def parse_policy(text: str, path: Path) -> Policy:
    """Return the policy in ``text``; ``path`` says what errors name, and whether it is nested."""
    whole = parse_toml(text, path)
    nested = _nested(whole)
    if path.name == PROJECT_NAME:
        problems, data = Problems(text, path, NESTED), nested
        if not isinstance(data, dict):
            raise PolicyError(f"{str(path)!r} has no table [tool.weightguard].")
    else:
        problems, data = Problems(text, path), whole
        if nested is not None:
            raise problems.at(
                NESTED,
                f"is for a {PROJECT_NAME}. In this file the keys stand alone, such as [rules] for "
                "[tool.weightguard.rules].",
            )
    _check_version(data, problems)
    _check_keys(data, Policy, (), problems)
    try:
        policy = msgspec.convert(data, Policy)
    except msgspec.ValidationError as error:
        raise problems.invalid(error) from error
    check_meaning(policy, problems)
    return policy


def problems_of(path: Path) -> Problems:
    """Return what tells the line of a value of a policy's file; none where that is not there."""
    text = read_text(path) if path.exists() else ""
    return Problems(text, path, NESTED if path.name == PROJECT_NAME else ())


def write_template(path: Path) -> None:
    """Write the commented policy to ``path``. Raises PolicyError; never replaces anything."""
    if path.name == PROJECT_NAME:
        raise PolicyError(
            f"in a {PROJECT_NAME} a policy stands below [tool.weightguard], as the template does "
            f"not: name another file, such as {POLICY_NAME}."
        )
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
    return project if _nested(parse_toml(read_text(project), project)) is not None else None


def _nested(data: Mapping[str, Any]) -> Any:
    """Return what stands in ``[tool.weightguard]``, None where there is none."""
    tool = data.get(NESTED[0])
    return tool.get(NESTED[1]) if isinstance(tool, dict) else None


def _check_version(data: Mapping[str, Any], problems: Problems) -> None:
    version = data.get("version", 1)
    if isinstance(version, int) and not isinstance(version, bool) and version > 1:
        raise problems.at(
            ("version",), f"is {version}, which this weightguard is too old for: update it."
        )


def _check_keys(data: object, kind: type[msgspec.Struct], keys: Keys, problems: Problems) -> None:
    """Raise PolicyError for a key that no table of its kind has."""
    if not isinstance(data, dict):
        return
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in data.items():
        if key not in fields:
            raise problems.at((*keys, key), f"is no key of a policy{hint(key, fields)}")
        inner, here = table_of(fields[key]), (*keys, key)
        if inner is None:
            _check_choices(value, _choices(fields[key]), here, problems)
        elif isinstance(value, list):
            for number, entry in enumerate(value):
                _check_keys(entry, inner, (*here, number), problems)
        else:
            _check_keys(value, inner, here, problems)


def _check_choices(value: object, choices: tuple[str, ...], keys: Keys, problems: Problems) -> None:
    """Raise PolicyError for text that is none of ``choices``, where there are any."""
    if not choices:
        return
    if isinstance(value, list):
        for number, entry in enumerate(value):
            _check_choices(entry, choices, (*keys, number), problems)
    elif isinstance(value, dict):
        for key, entry in value.items():
            _check_choices(entry, choices, (*keys, key), problems)
    elif isinstance(value, str) and value not in choices:
        listed = f"{', '.join(choices[:-1])} and {choices[-1]}"
        words = f"is {value[:100]!r}, which is none of {listed}{hint(value, choices)}"
        raise problems.at(keys, words)


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the words that a field's type allows, none where it allows more than words."""
    if typing.get_origin(kind) is typing.Literal:
        return tuple(word for word in typing.get_args(kind) if isinstance(word, str))
    return next((words for words in map(_choices, typing.get_args(kind)) if words), ())


def table_of(kind: Any) -> type[msgspec.Struct] | None:
    """Return the table that a field holds, alone, optional or in a list."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    if typing.get_origin(kind) in (tuple, typing.Union, types.UnionType):
        return next((t for t in map(table_of, typing.get_args(kind)) if t is not None), None)
    return None
