"""Processes of a test as the ranks of a gloo group, which meet at a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


@contextmanager
def gloo(rank: int, ranks: int, folder: Path) -> Iterator[None]:
    """Join the group of ``ranks`` processes that meets in ``folder``, with one thread each."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{ranks}", rank=rank, world_size=ranks,
        timeout=timedelta(seconds=60),
    )  # fmt: skip
    try:
        yield
    finally:
        dist.destroy_process_group()
