"""Streams tensors through the kernel: blocks in parallel, results in order, memory bounded.

A worker claims a whole tensor where one is left, else a block of a tensor that others are in.
Each worker reads into one page-aligned buffer of its own. What must happen in block order
(digest, joining rows, sums) waits for its turn, so results depend neither on the number of
threads nor on their timing.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from weightguard.progress import Meter
from weightguard.scan.digest import BLOCK_BYTES, DigestAlgorithm, block_count, block_digest
from weightguard.scan.fingerprint import FingerprintBuilder, TensorObserver, has_columns
from weightguard.scan.kernel import BlockKernel
from weightguard.tensor import TensorView

MAX_THREADS = 64

Observe = Callable[[TensorView], Sequence[TensorObserver]]
TakeBlock = Callable[[TensorView, int, memoryview], None]
"""Called with a tensor, an offset in its canonical bytes, and the block there, in any order."""


def default_threads() -> int:
    """Return the number of processors this process may use."""
    return min(len(os.sched_getaffinity(0)), MAX_THREADS)


def scan_tensors(
    tensors: Iterable[TensorView],
    observe: Observe,
    *,
    digest: DigestAlgorithm | None,
    threads: int | None = None,
    meter: Meter | None = None,
    take_block: TakeBlock | None = None,
) -> None:
    """Pass once over the bytes of ``tensors``; ``observe`` names who sees each one's results.

    ``digest`` None leaves out the cryptographic tensor digest and its cost.

    Observers of different tensors may run at the same time. ``take_block`` sees every block as it
    is read, from several threads at once; its memory is valid during the call only. Raises
    CheckpointError when a file cannot be read to its end.
    """
    queue = _Queue(tensors, observe, digest)
    workers = max(1, min(threads or default_threads(), MAX_THREADS))
    helpers = [
        threading.Thread(
            target=_work, args=(queue, meter, take_block), name=f"weightguard-scan-{n}"
        )
        for n in range(1, workers)
    ]
    for helper in helpers:
        helper.start()
    try:
        _work(queue, meter, take_block)
    finally:
        _join(helpers, queue)
    queue.raise_failure()


def _join(helpers: Iterable[threading.Thread], queue: _Queue) -> None:
    try:
        for helper in helpers:
            helper.join()
    except BaseException:
        # an interrupt lands in this thread only: let the others see that it is over
        queue.stop()
        raise


class _Lane:
    """One tensor in flight: blocks are claimed in order and merged in order."""

    def __init__(self, builder: FingerprintBuilder):
        self.builder = builder
        self.tensor = builder.tensor
        self.nbytes = self.tensor.nbytes
        self.blocks = block_count(self.nbytes)
        self.claimed = 0
        self.merged = 0
        self.turn = threading.Condition()


class _Stopped(Exception):  # noqa: N818 - control flow between workers, never seen outside
    """Another worker failed or the scan was interrupted."""


class _Queue:
    """Deals out blocks, and carries the first failure to the caller."""

    def __init__(
        self, tensors: Iterable[TensorView], observe: Observe, digest: DigestAlgorithm | None
    ):
        self._waiting = iter(tensors)
        self._observe = observe
        self._digest = digest
        self._lanes: list[_Lane] = []
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self.stopped = False

    def claim(self, lane: _Lane | None) -> tuple[_Lane, int] | None:
        """Return a block to work on, preferably of ``lane``; None when all are claimed."""
        with self._lock:
            if self.stopped:
                return None
            if lane is None or lane.claimed == lane.blocks:
                lane = self._next_lane() or self._busiest_lane()
            if lane is None:
                return None
            lane.claimed += 1
            return lane, lane.claimed - 1

    def _next_lane(self) -> _Lane | None:
        self._lanes = [lane for lane in self._lanes if lane.merged < lane.blocks]
        for tensor in self._waiting:
            lane = _Lane(FingerprintBuilder(tensor, self._digest, self._observe(tensor)))
            if lane.blocks:
                self._lanes.append(lane)
                return lane
            lane.builder.finish()
        return None

    def _busiest_lane(self) -> _Lane | None:
        unclaimed = [lane for lane in self._lanes if lane.claimed < lane.blocks]
        return max(unclaimed, key=lambda lane: lane.blocks - lane.claimed, default=None)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
        self.stop()

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            lanes = list(self._lanes)
        for lane in lanes:
            with lane.turn:
                lane.turn.notify_all()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _work(queue: _Queue, meter: Meter | None, take_block: TakeBlock | None) -> None:
    try:
        _scan_blocks(queue, meter, take_block)
    except _Stopped:
        return
    except BaseException as error:  # noqa: BLE001 - carried to the calling thread
        queue.fail(error)


def _scan_blocks(queue: _Queue, meter: Meter | None, take_block: TakeBlock | None) -> None:
    buffer = mmap.mmap(-1, BLOCK_BYTES + mmap.PAGESIZE)
    view, array = memoryview(buffer), np.frombuffer(buffer, np.uint8)
    claim = queue.claim(None)
    lane, kernel = None, None
    while claim is not None:
        if claim[0] is not lane:
            lane = claim[0]
            kernel = BlockKernel(
                lane.tensor.dtype, lane.tensor.layout, columns=has_columns(lane.tensor)
            )
        assert kernel is not None
        index = claim[1]
        start = index * BLOCK_BYTES
        rest = lane.nbytes - start
        nbytes = min(BLOCK_BYTES, rest)
        ahead = min(rest, nbytes + lane.tensor.dtype.block_bytes - 1)
        lane.tensor.source.read_into(start, view[:ahead])
        block = view[:nbytes]
        digest = block_digest(block)
        if take_block is not None:
            take_block(lane.tensor, start, block)
        scan = kernel.scan(array[:ahead], start, nbytes)
        _in_turn(queue, lane, index, lambda: lane.builder.add(index, block, digest, scan))  # noqa: B023
        if meter is not None:
            meter.add(nbytes)
        claim = queue.claim(lane)


def _in_turn(queue: _Queue, lane: _Lane, index: int, merge: Callable[[], None]) -> None:
    with lane.turn:
        while lane.merged != index:
            if queue.stopped:
                raise _Stopped
            lane.turn.wait()
    # the turn is ours alone until merged moves on, so the lock need not be held
    merge()
    if index + 1 == lane.blocks:
        lane.builder.finish()
    with lane.turn:
        lane.merged = index + 1
        lane.turn.notify_all()
