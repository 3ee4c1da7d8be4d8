"""Which rows and columns of a packed matrix a byte holds (docs/spec/ternary-layout-v1.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

GROUP_ROWS = 16
TILE_BYTES = 64


class Place(NamedTuple):
    """What one byte holds: a row of the padded matrix and its columns.

    ``tile`` counts along the row; ``check`` says that the row is one of the check rows.
    """

    row: int
    columns: tuple[int, ...]
    tile: int
    check: bool


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of a packed matrix; ``digits`` of the check rows beside the all-ones row."""

    ternary: bool
    rows: int
    columns: int
    digits: int

    @property
    def groups(self) -> int:
        """Groups of 16 rows that hold weights."""
        return -(-self.rows // GROUP_ROWS)

    @property
    def all_groups(self) -> int:
        """Groups of 16 rows with those of check rows."""
        return self.groups + -(-(1 + self.digits) // GROUP_ROWS)

    @property
    def group_bytes(self) -> int:
        """Bytes of one group."""
        padded = -(-self.columns // 16) * 16
        return padded // (16 if self.ternary else 4) * TILE_BYTES

    def place(self, offset: int) -> Place:
        """Return what the byte at ``offset`` holds."""
        panel, within = divmod(offset, 2 * self.group_bytes)
        paired = 2 * panel + 1 < self.all_groups
        step, byte = divmod(within, TILE_BYTES)
        group = 2 * panel + (step % 2 if paired else 0)
        tile = step // 2 if paired else step
        lane, q = divmod(byte, 4)
        first = tile * (16 if self.ternary else 4) + q
        columns = range(first, first + 16, 4) if self.ternary else range(first, first + 1)
        return Place(
            group * GROUP_ROWS + lane,
            tuple(k for k in columns if k < self.columns),
            tile,
            group >= self.groups,
        )
