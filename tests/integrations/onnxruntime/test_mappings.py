"""Mappings of a file: found by their name, with the pages that were read."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest

from weightguard import WeightguardError
from weightguard_integrations.onnxruntime import mappings
from weightguard_integrations.onnxruntime.mappings import (
    PAGE,
    accessed_pages,
    forget_accesses,
    mappings_of,
)

APART = 16 * PAGE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a file\nof two lines"
    path.write_bytes(bytes(range(256)) * (4 * APART // 256))
    return path


def mapped(path: Path, flags: int = mmap.MAP_PRIVATE) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)


def test_private_mappings_are_found_by_the_name_they_were_opened_by(path: Path) -> None:
    other = path.with_name("other")
    other.hardlink_to(path)
    assert mappings_of(path) == []
    first, second, shared = mapped(path), mapped(other), mapped(path, mmap.MAP_SHARED)
    (found,) = mappings_of(path)
    assert found.stop - found.start == len(first) == len(second) == len(shared)
    assert (found.offset, found.writable) == (0, True)
    assert ctypes.string_at(found.address(PAGE + 7, 3) or 0, 3) == bytes([7, 8, 9])
    assert found.address(len(first) - 1, 2) is None
    (second_found,) = mappings_of(other)
    assert second_found.start != found.start


def test_reading_shows_and_writing_in_another_mapping_does_not(path: Path) -> None:
    memory, other = mapped(path), mapped(path)
    places = mappings_of(path)
    forget_accesses(places)
    assert [accessed_pages(place.start, APART) for place in places] == [0, 0]
    assert memory[2 * APART] == 0
    other[0] = 9
    seen = {accessed_pages(place.start + 2 * APART, 1) for place in places}
    assert seen == {0, 1}
    assert all(accessed_pages(place.start + 3 * APART, APART) == 0 for place in places)


def test_forgetting_returns_clean_pages_to_the_file(path: Path) -> None:
    memory = mapped(path)
    memory[5] = 200
    forget_accesses(mappings_of(path))
    assert memory[5] == 5


def test_where_accesses_do_not_show_it_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = mapped(path)
    (place,) = mappings_of(path)
    monkeypatch.setattr(mappings, "PAGEMAP", Path("/proc/self/no-such-file"))
    with pytest.raises(WeightguardError, match="use mode='opaque'"):
        accessed_pages(place.start, 1)
    assert memory
