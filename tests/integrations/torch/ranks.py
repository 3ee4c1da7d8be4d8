"""Processes of a test as the ranks of a gloo group, which meet at a file."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


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


def run_ranks(work: Callable[[int, int, str], None], ranks: int, folder: Path) -> None:
    """Call ``work(rank, ranks, folder)`` in so many processes; an exception in one is raised.

    They are forked from a process that has imported torch for all of them and run nothing.
    """
    multiprocessing.set_forkserver_preload(["torch.distributed.fsdp", "torch._dynamo"])
    mp.start_processes(work, (ranks, str(folder)), nprocs=ranks, start_method="forkserver")
