"""Folders that only this user can write: what makes one, and everything that does not."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from weightguard.errors import WeightguardError
from weightguard.private import make_private, user_cache

REMEDY = "Name another one"


def refused(folder: Path, words: str) -> None:
    with pytest.raises(WeightguardError, match=words) as caught:
        make_private(folder, REMEDY)
    assert str(caught.value).endswith(REMEDY)


def test_what_is_missing_is_made_for_this_user_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b", REMEDY)
    finally:
        os.umask(mask)
    for made in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    make_private(tmp_path / "a" / "b", REMEDY)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750])
def test_others_may_read(mode: int, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(mode)
    make_private(tmp_path / "own", REMEDY)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_nobody_else_may_write(mode: int, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own").chmod(mode)
    refused(tmp_path / "own", "group or others can write it; `chmod go-w`")


@pytest.mark.parametrize(("mode", "fine"), [(0o777, False), (0o702, False), (0o1777, True),
                                            (0o775, True), (0o711, True)])  # fmt: skip
def test_nobody_else_may_replace_it(mode: int, fine: bool, tmp_path: Path) -> None:
    above = tmp_path / "above"
    (above / "between" / "own").mkdir(parents=True)
    (above / "between" / "own").chmod(0o700)
    (above / "between").chmod(0o755)
    above.chmod(mode)
    if fine:
        make_private(above / "between" / "own", REMEDY)
    else:
        refused(above / "between" / "own", f"replace what lies in '{above}'")


def test_a_link_is_no_folder_and_leads_through_no_open_one(tmp_path: Path) -> None:
    (tmp_path / "open" / "own").mkdir(parents=True, mode=0o700)
    (tmp_path / "link").symlink_to("open")
    refused(tmp_path / "link", "no folder itself")
    make_private(tmp_path / "link" / "own", REMEDY)
    (tmp_path / "open").chmod(0o777)
    refused(tmp_path / "link" / "own", f"replace what lies in '{tmp_path / 'open'}'")


@pytest.mark.parametrize("whose", ["", "above", "link"])
def test_what_belongs_to_another_user(
    whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "above" / "own").mkdir(parents=True, mode=0o700)
    (tmp_path / "link").symlink_to("above")
    folder = tmp_path / "link" / "own"
    make_private(folder, REMEDY)
    strange, lstat = tmp_path / whose if whose else folder, Path.lstat

    def another(path: Path) -> os.stat_result:
        status = lstat(path)
        fields = list(status)
        fields[stat.ST_UID] += 1 if path == strange else 0
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "lstat", another)
    refused(folder, "belongs to another user")


@pytest.mark.parametrize("spoil", [lambda p: p.write_text(""), lambda p: p.symlink_to("nowhere")])
def test_what_cannot_be_made(spoil: Callable[[Path], object], tmp_path: Path) -> None:
    spoil(tmp_path / "x")
    refused(tmp_path / "x" / "own", "cannot be used")
    refused(Path("/proc/weightguard"), "cannot be used")


def test_where_the_cache_of_a_user_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/me")
    assert user_cache("trust") == Path("/var/me/weightguard/trust")
    for no_place in ("", "relative", "./x"):
        monkeypatch.setenv("XDG_CACHE_HOME", no_place)
        assert user_cache("trust") == Path("/home/me/.cache/weightguard/trust")
    monkeypatch.setenv("HOME", "relative")
    with pytest.raises(WeightguardError, match="set XDG_CACHE_HOME"):
        user_cache("trust")
