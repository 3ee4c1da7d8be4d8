"""A limit on how long one run may take, kept from beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime as ort

STEPS = 20
"""A limit is waited for in steps, so that a process that is stopped for a while loses but one."""


@contextmanager
def ended_after(seconds: float | None, options: ort.RunOptions) -> Iterator[None]:
    """Have runs under ``options`` end after ``seconds`` of the block, None for no limit.

    onnxruntime looks for that between two nodes, those of a loop's body included; a run that was
    ended raises. ``options.terminate`` says so.
    """
    if seconds is None:
        yield
        return
    over = threading.Event()

    def wait() -> None:
        if not any(over.wait(seconds / STEPS) for _ in range(STEPS)):
            options.terminate = True

    thread = threading.Thread(target=wait, name="weightguard-canary-limit", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
