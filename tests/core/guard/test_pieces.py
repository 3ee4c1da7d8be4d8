"""Pieces as runs of bytes: from live bytes to attested ones and back, and what is no piece."""

from __future__ import annotations

import numpy as np
import pytest

from weightguard.guard.pieces import Piece, origins, place_in

RECORD = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30)
PIECES = [
    Piece("r", 60, 180),  # rows 1 and 2
    Piece("r", 20, 40, 60, 40),  # columns 10 to 19
    Piece("r", 0, 0),
    Piece("r", 60 * 30 + 8, 60 * 30 + 20),  # some of row 30
]


def live() -> bytes:
    parts = (RECORD[1:3], RECORD[:, 10:20], RECORD[30, 4:10])
    return b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 932), (0, 0), (7, 13), (118, 150), (120, 121), (300, 925), (920, 932)]
)
def test_live_bytes_are_made_of_those_ranges(start: int, stop: int) -> None:
    record = RECORD.tobytes()
    assert len(live()) == 932 == sum(piece.nbytes for piece in PIECES)
    found = b"".join(record[first:last] for name, first, last in origins(PIECES, start, stop))
    assert found == live()[start:stop]


def test_attested_bytes_are_found_where_they_lie() -> None:
    record, found = RECORD.tobytes(), live()
    for offset in range(len(record)):
        place = place_in(PIECES, "r", offset)
        row, column = divmod(offset, 60)
        held = row in (1, 2) or 20 <= column < 40 or (row == 30 and 8 <= column < 20)
        assert (place is not None) == held
        assert place is None or found[place] == record[offset]
    assert place_in(PIECES, "another", 70) is None


@pytest.mark.parametrize(
    ("piece", "inside"),
    [
        (Piece("r", 0, 2400), True),
        (Piece("r", 20, 40, 60, 40), True),
        (Piece("r", 20, 40, 60, 41), False),  # beyond the end
        (Piece("r", 20, 40, 10, 4), False),  # runs that overlap hold bytes twice
        (Piece("r", 20, 40, -60, 4), False),
        (Piece("r", 1, 3), False),  # half an element
        (Piece("r", 40, 20), False),
        (Piece("r", 20, 40, 60, 0), False),
        (Piece("r", -20, 0), False),
        (Piece("r", 0, 2, 1 << 62, 1 << 62), False),
    ],
)
def test_pieces_lie_in_their_record(piece: Piece, inside: bool) -> None:
    assert piece.inside(RECORD.nbytes, 2) == inside
