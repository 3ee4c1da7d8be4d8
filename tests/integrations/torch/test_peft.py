"""Adapters of PEFT: each change has the code that the guard's page gives it, declared ones none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import peft
import pytest
import torch

from tests.integrations.torch.tiny_models import llama
from weightguard import Manifest, fingerprint
from weightguard.guard import State
from weightguard_integrations.torch import TorchGuard, guard

TARGETS = ["q_proj", "v_proj"]
WEIGHTS = 3 * len(TARGETS)
"""Base weights that an adapter is merged into: two in each of three layers."""
TOKENS = torch.arange(12)[None]

Adapted = tuple[peft.PeftModel, TorchGuard]


def config() -> peft.LoraConfig:
    return peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manifest]:
    folder = tmp_path_factory.mktemp("base")
    llama().save_pretrained(folder)
    with fingerprint(folder) as made:
        yield made


@pytest.fixture
def adapted(manifest: Manifest) -> Iterator[Adapted]:
    """A model with two adapters, one of which is in use, and its guard."""
    model = peft.get_peft_model(llama().eval(), config(), adapter_name="style")
    model.add_adapter("other", config())
    model.eval()
    with guard(model, manifest, scrub=None, on_incident=("metrics", "repair")) as made:
        yield model, made


def codes(made: TorchGuard) -> list[str]:
    return [i.code for i in made.incidents if i.code != "WG910"]


def tensors(made: TorchGuard, code: str) -> set[str]:
    return {i.tensor or "" for i in made.incidents if i.code == code}


def test_the_base_is_attested_and_adapters_are_trusted(adapted: Adapted) -> None:
    _, made = adapted
    entries = made.baseline.tensors
    trusted = {n for n, e in entries.items() if e.attestation == "trusted-on-first-use"}
    assert {name for name in trusted if "lora_" not in name} <= {n for n in trusted if "inv" in n}
    assert sum("lora_" in name for name in trusted) == 2 * 2 * WEIGHTS
    assert codes(made) == []


def test_a_merge_is_an_adapter_swapped_and_is_left_alone(adapted: Adapted) -> None:
    model, made = adapted
    model.merge_adapter()
    merged = {name: p.clone() for name, p in model.named_parameters()}
    made.check()
    made.check()
    assert codes(made) == ["WG904"] * WEIGHTS
    assert all(name.endswith("base_layer.weight") for name in tensors(made, "WG904"))
    assert all(torch.equal(p, merged[name]) for name, p in model.named_parameters())
    assert made.state is State.DEGRADED


def test_unmerging_says_nothing_new_and_ends_where_the_bits_are_back(adapted: Adapted) -> None:
    model, made = adapted
    clean = {name: p.clone() for name, p in model.named_parameters()}
    model.merge_adapter()
    made.check()
    model.unmerge_adapter()
    made.check()
    made.check()
    assert codes(made) == ["WG904"] * WEIGHTS
    assert made.state is State.DEGRADED, "what was added and taken away again was rounded"
    for name, parameter in model.named_parameters():
        parameter.data.copy_(clean[name])
    made.check()
    made.check()
    assert (codes(made), made.state) == (["WG904"] * WEIGHTS, State.HEALTHY)


def test_another_adapter_merged_in_place_of_one_is_a_swap(adapted: Adapted) -> None:
    model, made = adapted
    with made.update():
        model.merge_adapter()
    model.unmerge_adapter()
    model.set_adapter("other")
    model.merge_adapter()
    made.check()
    assert codes(made) == ["WG903", *["WG904"] * WEIGHTS]


def _write(model: peft.PeftModel) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.style" in name:
                parameter.mul_(2)


def _enter(model: peft.PeftModel) -> None:
    model.disable_adapter().__enter__()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda model: model.set_adapter("other"), set()),
        (_enter, set()),
        (_write, {"WG902"}),
        (lambda model: model.add_adapter("third", config()), {"WG915"}),
        (lambda model: model.delete_adapter("other"), {"WG914"}),
        (lambda model: model.merge_and_unload(), {"WG914", "WG915"}),
        (lambda model: model.unload(), {"WG914", "WG915"}),
    ],
    ids=["switched", "disabled", "written", "added", "deleted", "merged for good", "unloaded"],
)
def test_other_changes(
    adapted: Adapted, change: Callable[[peft.PeftModel], object], expected: set[str]
) -> None:
    model, made = adapted
    change(model)
    made.check()
    made.check()
    assert set(codes(made)) == expected
    assert made.state is (State.DEGRADED if expected else State.HEALTHY)


def test_declared_ones_are_silent(adapted: Adapted) -> None:
    model, made = adapted
    changes = [
        model.merge_adapter,
        model.unmerge_adapter,
        lambda: (model.set_adapter("other"), model.merge_adapter()),
        model.unmerge_adapter,
        lambda: _write(model),
        lambda: model.add_adapter("third", config()),
        lambda: model.delete_adapter("style"),
        model.merge_and_unload,
    ]
    for number, change in enumerate(changes, 1):
        with made.update():
            change()
        with torch.inference_mode():
            model(TOKENS)
        assert made.check().findings == ()
        assert codes(made) == ["WG903"] * number
        assert made.state is State.HEALTHY


@pytest.fixture
def merged_for_a_pass(manifest: Manifest) -> Iterator[Adapted]:
    """A model with nothing merged into it, that had an adapter merged in one forward pass."""
    model = peft.get_peft_model(llama().eval(), config(), adapter_name="style").eval()
    quiet = {"scrub": None, "step_budget": 0}
    with guard(model, manifest, on_incident=("metrics", "repair"), **quiet) as made:
        model.merge_adapter()
        with torch.inference_mode():
            model(TOKENS)
        model.unmerge_adapter()
        yield model, made


def test_a_merge_that_only_passes_saw_is_an_adapter_swapped(merged_for_a_pass: Adapted) -> None:
    model, made = merged_for_a_pass
    rounded = {name: p.clone() for name, p in model.named_parameters()}
    made.check()
    made.check()
    assert set(codes(made)) == {"WG904"}
    assert all(name.endswith("base_layer.weight") for name in tensors(made, "WG904"))
    assert all(torch.equal(p, rounded[name]) for name, p in model.named_parameters())


def test_a_flip_after_such_a_merge_is_corruption_again(merged_for_a_pass: Adapted) -> None:
    model, made = merged_for_a_pass
    clean = dict(llama().named_parameters())
    for name, parameter in model.named_parameters():
        if name.endswith("base_layer.weight"):
            path = name.removeprefix("base_model.model.").replace(".base_layer", "")
            parameter.data.copy_(clean[path])
    model.get_parameter("base_model.model.model.norm.weight").data.view(torch.int32)[3] ^= 1 << 20
    made.check()
    assert codes(made) == ["WG901", "WG907"], "layers beside those with adapters are not excused"
    weight = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    model.get_parameter(weight).data.view(torch.int32)[0, 0] ^= 1 << 20
    made.check()
    assert codes(made) == ["WG901", "WG907"] * 2, "nor are those whose old bits came back"


def test_a_merge_taken_back_unseen_is_put_right_from_the_golden_copy(
    manifest: Manifest, tmp_path: Path
) -> None:
    """No pass saw it, and PEFT writes past what torch counts: corruption to a guard."""
    llama().save_pretrained(tmp_path / "golden")
    model = peft.get_peft_model(llama().eval(), config(), adapter_name="style").eval()
    clean = {name: p.clone() for name, p in model.named_parameters()}
    with guard(
        model, manifest, golden=tmp_path / "golden", scrub=None, on_incident=("repair",)
    ) as made:
        model.merge_adapter()
        model.unmerge_adapter()
        made.check()
        assert set(codes(made)) == {"WG901", "WG907"}
        assert all(torch.equal(p, clean[name]) for name, p in model.named_parameters())
        assert made.state is State.HEALTHY
