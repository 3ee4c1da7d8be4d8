"""SmolLM2-135M-Instruct under the guard: flips found, located and undone; no alarm without one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integrations.torch.real_folder import smollm2_folder
from tests.integrations.torch.test_guard import bits, codes
from weightguard import Manifest, fingerprint
from weightguard.guard import State
from weightguard.scan.digest import BLOCK_BYTES
from weightguard_integrations.torch import TorchGuard, guard, load_verified

pytestmark = [pytest.mark.proof, pytest.mark.real]

ONE_BY_ONE = 20
AT_ONCE = 2000
TOKENS = torch.tensor([[504, 3575, 282, 4649, 314]])


class Case(NamedTuple):
    model: torch.nn.Module
    manifest: Manifest
    folder: Path


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    folder = smollm2_folder()
    with fingerprint(folder) as manifest:
        state = load_verified(folder, manifest)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, local_files_only=True
        )
        model.load_state_dict(state, assign=True, strict=False)
        model.tie_weights()
        yield Case(model.eval(), manifest, folder)


@pytest.fixture
def made(case: Case) -> Iterator[TorchGuard]:
    made = guard(
        case.model, case.manifest, scrub=None, golden=case.folder,
        on_incident=("metrics", "repair", "raise"),
    )  # fmt: skip
    yield made
    made.close()


def draw(model: torch.nn.Module, count: int, seed: int) -> list[tuple[str, int, int]]:
    """Return (parameter, element, bit), uniform over all weights."""
    generator = random.Random(seed)
    parameters = dict(model.named_parameters())
    names = generator.choices(
        list(parameters), [p.numel() for p in parameters.values()], k=count
    )  # fmt: skip
    return [(n, generator.randrange(parameters[n].numel()), generator.randrange(16)) for n in names]


def flip(model: torch.nn.Module, name: str, element: int, bit: int) -> None:
    bits(model.get_parameter(name)).reshape(-1)[element] ^= np.uint16(1 << bit)


def test_all_of_it_is_attested_and_tied_weights_count_once(case: Case, made: TorchGuard) -> None:
    coverage = made.coverage()
    assert coverage.attested == 2 * sum(p.numel() for p in case.model.parameters())
    assert coverage.trusted == sum(4 * b.numel() for b in case.model.buffers())
    assert (coverage.ratio, codes(made)) == (1, [])


def test_flips_one_by_one_are_found_in_a_pass_and_undone(
    case: Case, made: TorchGuard, claim: Callable[[str], None]
) -> None:
    with torch.inference_mode():
        clean = case.model(TOKENS).logits
    for number, (name, element, bit) in enumerate(draw(case.model, ONE_BY_ONE, 1)):
        flip(case.model, name, element, bit)
        verified = 0
        while verified < made.status().pass_bytes:
            verified += made.scrub(32 * BLOCK_BYTES)
        first, second = made.incidents[-2:]
        assert (first.code, second.code, len(codes(made))) == ("WG901", "WG907", 2 * number + 2)
        shape = case.model.get_parameter(name).shape
        assert first.tensor == name
        assert first.finding.location.element == tuple(
            int(i) for i in np.unravel_index(element, shape)
        )
        assert first.finding.evidence["elements"][0]["flipped_bits"] == [bit]
        assert second.finding.evidence["source"] == "residues"
    assert made.state is State.HEALTHY
    with torch.inference_mode():
        assert torch.equal(case.model(TOKENS).logits, clean)
    claim(f"live SmolLM2: {ONE_BY_ONE} of {ONE_BY_ONE} flips found in one pass, located, undone")


def test_thousands_of_flips_at_once_are_undone_bit_for_bit(
    case: Case, made: TorchGuard, claim: Callable[[str], None]
) -> None:
    before = {name: bits(p).copy() for name, p in case.model.named_parameters()}
    flips = draw(case.model, AT_ONCE, 2)
    for name, element, bit in flips:
        flip(case.model, name, element, bit)
    report = made.check()
    assert report.complete
    assert report.findings == (), "all was repaired when its block was checked"
    for name, parameter in case.model.named_parameters():
        assert np.array_equal(bits(parameter), before[name])
    sources = [i.finding.evidence["source"] for i in made.incidents if i.code == "WG907"]
    golden = sources.count("golden copy")
    claim(
        f"live SmolLM2: {AT_ONCE} flips at once, {len(sources)} blocks repaired, "
        f"{golden} of them from the golden copy"
    )


def test_decoding_under_the_guard_raises_nothing(case: Case, claim: Callable[[str], None]) -> None:
    with torch.inference_mode():
        clean = case.model.generate(TOKENS, max_new_tokens=40, do_sample=False)
        with guard(case.model, case.manifest, scrub="2GB/s") as made:
            guarded = case.model.generate(TOKENS, max_new_tokens=40, do_sample=False)
            assert codes(made) == []
            blocks = made.metrics.value("weightguard_blocks_verified_total")  # type: ignore[attr-defined]
    assert torch.equal(guarded, clean)
    claim(f"live SmolLM2: 0 alarms in 40 decode steps and {blocks:.0f} block checks")


def test_a_float32_copy_is_vouched_for_through_the_cast(case: Case) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        case.folder, dtype=torch.float32, local_files_only=True
    )
    made = guard(model, case.manifest, scrub=None, on_incident=("metrics",))
    coverage = made.coverage()
    assert coverage.transformed == 4 * sum(p.numel() for p in model.parameters())
    assert (coverage.attested, codes(made)) == (0, [])
    made.close()
