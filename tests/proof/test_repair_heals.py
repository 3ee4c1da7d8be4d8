"""What repair promises: scattered flips, every pattern of lost blocks, and never worse."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import random_tensor, write_safetensors
from tests.damaged import MIB, attest, overwrite
from weightguard import Manifest
from weightguard.parity import Grouping
from weightguard.repair import Means, repair_in_place

FLIPS = 100_000
RANDOM_PATTERNS = 6


@pytest.mark.proof
def test_a_hundred_thousand_flips_are_healed_bit_for_bit(
    tmp_path: Path, claim: Callable[[str], None]
) -> None:
    rows, row_bytes = 60_000, 256
    tensors = {
        name: random_tensor("BF16", (rows, row_bytes // 2), n) for n, name in enumerate("pq")
    }
    model = write_safetensors(tmp_path / "m.safetensors", tensors)
    manifest = attest(model, tmp_path / "m.weightguard.json")
    sound = model.read_bytes()
    data = np.frombuffer(sound, np.uint8).copy()
    generator = np.random.default_rng(11)
    chosen = generator.choice(2 * rows, FLIPS, replace=False)
    places = len(sound) - 2 * rows * row_bytes + chosen * row_bytes
    places += generator.integers(0, row_bytes, FLIPS)
    data[places] ^= (1 << generator.integers(0, 8, FLIPS)).astype(np.uint8)
    assert np.unpackbits(data ^ np.frombuffer(sound, np.uint8)).sum() == FLIPS
    model.write_bytes(data)
    with Manifest.read(manifest) as read:
        assert repair_in_place(model, read).healed
    assert model.read_bytes() == sound
    claim(f"{FLIPS:,} flips, at most one a row, healed bit for bit by residues alone")


@pytest.mark.proof
def test_every_pattern_that_parity_promises_is_solvable_in_small_groups(
    claim: Callable[[str], None],
) -> None:
    """All ways to lose at most one block a group, on 1 to 14 blocks of 3 bytes, XORed by hand."""
    patterns = 0
    for nbytes, group_blocks in itertools.product(range(1, 43), (2, 3)):
        grouping = Grouping(nbytes, 3, group_blocks)
        if grouping.groups > 7:
            continue
        stream = random.Random(nbytes).randbytes(nbytes)
        blocks = [stream[3 * b : 3 * b + 3] for b in range(grouping.blocks)]
        parity = [xor(blocks[b] for b in grouping.members(g)) for g in range(grouping.groups)]
        choices = [[None, *grouping.members(g)] for g in range(grouping.groups)]
        for lost in itertools.product(*choices):
            patterns += 1
            for group, block in enumerate(lost):
                if block is not None:
                    others = (blocks[b] for b in grouping.members(group) if b != block)
                    restored = xor([parity[group], *others])
                    assert restored[: len(blocks[block])] == blocks[block]
    claim(f"{patterns:,} patterns of lost blocks, all that parity promises on small streams")


def xor(parts: Iterable[bytes]) -> bytes:
    total = 0
    for part in parts:
        total ^= int.from_bytes(part, "little")
    return total.to_bytes(3, "little")


@pytest.mark.proof
def test_one_lost_block_of_any_group_comes_back_and_two_never_make_it_worse(
    tmp_path: Path, claim: Callable[[str], None]
) -> None:
    """Full size: 70 blocks in 3 groups, one tensor, so that its blocks are the stream's."""
    count = 70
    model = write_safetensors(
        tmp_path / "m.safetensors", {"w": random_tensor("U8", (count * MIB,), 3)}
    )
    manifest = attest(model, tmp_path / "m.weightguard.json", parity=True)
    sound = tmp_path / "sound"
    shutil.copyfile(model, sound)
    start = model.stat().st_size - count * MIB
    grouping = Grouping(count * MIB)
    choose = random.Random(5)
    whole = sound.read_bytes()
    for _ in range(RANDOM_PATTERNS):
        lost = [choose.choice(grouping.members(group)) for group in range(grouping.groups)]
        for block in lost:
            overwrite(model, start + block * MIB, choose.randbytes(MIB))
        with Manifest.read(manifest) as read:
            assert repair_in_place(model, read).healed
        assert model.read_bytes() == whole
    first, second, *_ = grouping.members(1)
    for block in (first, second):
        overwrite(model, start + block * MIB, choose.randbytes(MIB))
    before = model.read_bytes()
    with Manifest.read(manifest) as read:
        assert not repair_in_place(model, read).healed
    assert model.read_bytes() == before
    claim(f"{RANDOM_PATTERNS} random patterns of one lost 1 MiB block in each of 3 groups healed")


@pytest.mark.proof
def test_bursts_of_as_many_blocks_as_groups_come_back(
    tmp_path: Path, claim: Callable[[str], None]
) -> None:
    count = 70
    model = write_safetensors(
        tmp_path / "m.safetensors", {"w": random_tensor("U8", (count * MIB,), 4)}
    )
    manifest = attest(model, tmp_path / "m.weightguard.json", parity=True)
    whole = model.read_bytes()
    start = len(whole) - count * MIB
    for first in (0, 31, 67):
        overwrite(model, start + first * MIB, bytes(3 * MIB))
        with Manifest.read(manifest) as read:
            assert repair_in_place(model, read, Means(threads=2)).healed
        assert model.read_bytes() == whole
    for cut in (1, 3 * MIB):
        with model.open("r+b") as file:
            file.truncate(len(whole) - cut)
        with Manifest.read(manifest) as read:
            assert repair_in_place(model, read, Means(threads=2)).healed
        assert model.read_bytes() == whole
    claim("3 bursts of 3 MiB and 2 cut ends of up to 3 MiB of a 70 MiB model healed by parity")


@pytest.mark.proof
def test_damage_of_any_kind_is_never_made_worse(
    tmp_path: Path, claim: Callable[[str], None]
) -> None:
    """Whatever happened, each byte ends as it was before, or as it was when it was attested."""
    tensors = {
        "a": random_tensor("BF16", (300, 2048), 1),
        "b": random_tensor("F32", (33,), 2),
        "c": random_tensor("U8", (3 * MIB + 7,), 3),
    }
    model = write_safetensors(tmp_path / "m.safetensors", tensors)
    manifest = attest(model, tmp_path / "m.weightguard.json", parity=True)
    sound = model.read_bytes()
    healed = kept = 0
    for seed in range(80):
        choose = random.Random(seed)
        data = bytearray(sound)
        for _ in range(choose.choice([1, 1, 2, 5])):
            at, size = choose.randrange(len(data)), choose.choice([1, 2, 60, 5000, 700_000])
            data[at : at + size] = choose.randbytes(len(data[at : at + size]))
        data = data[: choose.choice([len(data)] * 3 + [choose.randrange(len(data))])]
        model.write_bytes(data)
        with Manifest.read(manifest) as read:
            outcome = repair_in_place(model, read, Means(threads=1))
        after = model.read_bytes()
        assert outcome.healed == (after == sound)
        healed, kept = healed + outcome.healed, kept + (after == data)
        if len(after) == len(data):
            longest = np.frombuffer(after, np.uint8)
            was, attested = (np.frombuffer(d[: len(after)], np.uint8) for d in (bytes(data), sound))
            assert ((longest == was) | (longest == attested)).all()
        else:
            assert after == sound
    assert healed > 15
    assert kept > 10
    claim(f"80 random damages: {healed} healed whole, {kept} left untouched, none made worse")
