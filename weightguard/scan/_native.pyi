"""The native block kernel; ``weightguard.scan.fallback`` documents what the functions do."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def residues(
    data: NDArray[np.uint8],
    start: int,
    nbytes: int,
    row_bytes: int,
    word_bytes: int,
    out: NDArray[np.uint64],
) -> None: ...
def statistics(
    code: int,
    values: NDArray[np.uint8],
    first: int,
    scalars: int,
    row_scalars: int,
    magnitudes: NDArray[np.unsignedinteger[Any]],
    columns: NDArray[np.unsignedinteger[Any]] | None,
    count: NDArray[np.uint64],
    sums: NDArray[np.float64],
) -> None: ...
def fused(
    code: int,
    data: NDArray[np.uint8],
    start: int,
    nbytes: int,
    row_bytes: int,
    out: NDArray[np.uint64],
    magnitudes: NDArray[np.unsignedinteger[Any]],
    columns: NDArray[np.unsignedinteger[Any]] | None,
    count: NDArray[np.uint64],
    sums: NDArray[np.float64],
) -> None: ...
def format_code(name: str) -> int: ...
def available_isas() -> tuple[str, ...]: ...
def active_isa() -> str: ...
def select_isa(name: str) -> None: ...
def dequantise(name: str, blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None: ...
