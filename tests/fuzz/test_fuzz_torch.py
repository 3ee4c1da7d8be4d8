"""Mutated PyTorch zips and pickles give a finding or are read; nothing else happens."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.torch_archives import archive, pickled, storage, table, tensor
from weightguard.checkpoint.files import CheckpointFile
from weightguard.checkpoint.torch_zip import parse_torch
from weightguard.checkpoint.torch_zip.pickle_machine import read_pickle
from weightguard.errors import CheckpointError

MUTANTS = 2500


def mutations(data: bytes, source: random.Random) -> Iterator[bytes]:
    while True:
        mutant = bytearray(data)
        for _ in range(source.randint(1, 4)):
            at = source.randrange(len(mutant))
            match source.randrange(5):
                case 0:
                    mutant[at] ^= 1 << source.randrange(8)
                case 1:
                    mutant[at] = source.randrange(256)
                case 2:
                    del mutant[at : at + source.randint(1, 16)]
                case 3:
                    mutant[at:at] = source.randbytes(source.randint(1, 16))
                case _:
                    size = source.choice([2, 4, 8])
                    mutant[at : at + size] = b"\xff" * size
            if not mutant:
                mutant = bytearray(b"P")
        yield bytes(mutant)


def run(data: bytes, read: Callable[[bytes], object], seed: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for mutant in itertools.islice(mutations(data, random.Random(seed)), MUTANTS):
        started = time.monotonic()
        try:
            read(mutant)
            outcomes["read"] += 1
        except CheckpointError as error:
            outcomes[error.finding.rule] += 1
        assert time.monotonic() - started < 60
    return outcomes


def test_mutated_zips(tmp_path: Path, claim: Callable[[str], None]) -> None:
    path = tmp_path / "model.pt"

    def read(mutant: bytes) -> None:
        path.write_bytes(mutant)
        file = CheckpointFile(path, "model.pt")
        try:
            for view in parse_torch(file).tensors:
                view.read()
        finally:
            file.close()

    outcomes = run(archive(), read, 1)
    claim(f"PyTorch zip fuzz: {outcomes.total()} mutants, {dict(outcomes)}")
    assert len(outcomes) > 2


def test_mutated_pickles(claim: Callable[[str], None]) -> None:
    value = pickled(table(a=tensor(), b=tensor(storage("1")), c=table(d=tensor())))
    outcomes = run(value, lambda mutant: read_pickle(mutant, file="m", offset=0), 2)
    claim(f"PyTorch pickle fuzz: {outcomes.total()} mutants, {dict(outcomes)}")
    assert len(outcomes) > 2


def test_mutated_pickles_in_sound_zips(tmp_path: Path, claim: Callable[[str], None]) -> None:
    """Mutants past the zip's checksums, so that names, extents and views meet them too."""
    path = tmp_path / "model.pt"

    def read(mutant: bytes) -> None:
        path.write_bytes(archive(mutant))
        file = CheckpointFile(path, "model.pt")
        try:
            parsed = parse_torch(file)
            names = [name for view in parsed.tensors for name in (view.name, *view.aliases)]
            assert len(set(names)) == len(names)
            for view in parsed.tensors:
                assert len(view.read()) == view.nbytes
        finally:
            file.close()

    views = [tensor(shape=(2, 2), strides=(1, 2)), tensor(shape=(3, 4), strides=(0, 1))]
    value = pickled(table(a=tensor(), b=views[0], c=table(d=views[1], e=tensor())))
    outcomes = run(value, read, 3)
    claim(f"PyTorch pickle in zip fuzz: {outcomes.total()} mutants, {dict(outcomes)}")
    assert {"read", "WG103", "WG112"} <= set(outcomes)
