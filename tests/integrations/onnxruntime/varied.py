"""Requests of many shapes, run in every way and from two threads at once: nothing to alarm of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from weightguard_integrations.onnxruntime import GuardedSession

Feed: TypeAlias = dict[str, NDArray[Any]]

WORDS = 30_522
"""Rows of MiniLM's embedding."""

EXPECTED = frozenset({"WG910", "WG916"})
"""What is said of a session as it is loaded: what nobody vouched for, what is out of reach."""

MODES = ((1, "sealed"), (2, "sealed"), (2, "inplace"), (2, "opaque"))
"""Threads of a session, and its mode."""


def magika_feed(generator: np.random.Generator) -> Feed:
    return {"bytes": generator.integers(0, 257, (generator.integers(1, 4), 2048), np.int32)}


def minilm_feed(generator: np.random.Generator) -> Feed:
    shape = int(generator.integers(1, 4)), int(generator.integers(1, 25))
    mask = (generator.random(shape) < 0.8).astype(np.int64)
    mask[:, 0] = 1
    return {
        "input_ids": generator.integers(0, WORDS, shape),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, 2, shape),
    }


def everything_feed(generator: np.random.Generator) -> Feed:
    return {
        "ids": generator.integers(0, 300, generator.integers(1, 17)),
        "choice": np.array(bool(generator.integers(2))),
    }


FEEDS: dict[str, Callable[[np.random.Generator], Feed]] = {
    "magika": magika_feed,
    "MiniLM": minilm_feed,
    "MiniLM int8": minilm_feed,
    "MiniLM int4": minilm_feed,
    "everything": everything_feed,
}


def serve(session: GuardedSession, name: str, runs: int, seed: int) -> Iterator[str]:
    """Answer ``runs`` requests, two at a time; yield the code of each alarm at the end."""

    def half(part: int) -> None:
        generator = np.random.default_rng((seed, part))
        for turn in range(part, runs, 2):
            WAYS[turn // 2 % len(WAYS)](session, FEEDS[name](generator))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(half, range(2)))
    for found in session.check().findings:
        yield found.rule
    for incident in session.incidents:
        if incident.code not in EXPECTED:
            yield incident.code


def plainly(session: GuardedSession, feed: Feed) -> None:
    session.run(None, feed)


def with_options(session: GuardedSession, feed: Feed) -> None:
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session.run([output.name for output in session.get_outputs()], feed, options)


def bound(session: GuardedSession, feed: Feed) -> None:
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_cpu_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)


def bound_in_place(session: GuardedSession, feed: Feed) -> None:
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feed.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    session.run_with_iobinding(binding)
    binding.copy_outputs_to_cpu()


def with_values(session: GuardedSession, feed: Feed) -> None:
    values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feed.items()}
    session.run_with_ort_values(None, values)


def asynchronously(session: GuardedSession, feed: Feed) -> None:
    if session.get_session_options().intra_op_num_threads == 1:
        plainly(session, feed)  # onnxruntime itself refuses it
        return
    done, errors = threading.Event(), []

    def take(_results: object, _data: object, error: str) -> None:
        errors.append(error)
        done.set()

    session.run_async(None, feed, take, None)
    assert done.wait(60)
    assert errors == [""]


WAYS = (plainly, with_options, bound, bound_in_place, with_values, asynchronously)
