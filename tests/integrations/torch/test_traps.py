"""Traps of PyTorch: writes it does not count, memory it shares, copies it makes; and bad use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from tests.integrations.torch.test_guard import TOKENS, bits, codes
from tests.integrations.torch.tiny_models import gpt2, llama
from weightguard import Manifest, WeightguardError, fingerprint
from weightguard.guard import State
from weightguard_integrations.torch import TorchGuard, guard

QUIET = ("metrics", "repair")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traps") / "model"
    llama().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return fingerprint(folder)


def made_for(model: nn.Module, manifest: Manifest | None = None, **more: object) -> TorchGuard:
    settings = {"scrub": None, "on_incident": QUIET, **more}
    return guard(model, manifest, **settings)  # type: ignore[arg-type]


def _through_numpy(weight: nn.Parameter) -> None:
    bits(weight)[3, 4] ^= 1 << 9


def _through_data(weight: nn.Parameter) -> None:
    weight.data[3, 4] *= 1.5


def _through_a_view_of_data(weight: nn.Parameter) -> None:
    weight.data.view(-1)[7].zero_()


@pytest.mark.parametrize("write", [_through_numpy, _through_data, _through_a_view_of_data])
def test_writes_that_no_version_counts_are_corruption(
    manifest: Manifest, write: Callable[[nn.Parameter], None]
) -> None:
    model = llama().eval()
    made = made_for(model, manifest)
    weight = model.lm_head.weight
    version, clean = weight._version, weight.detach().clone()
    write(weight)
    assert weight._version == version
    assert made.check().findings == ()
    assert codes(made) == ["WG901", "WG907"]
    assert torch.equal(weight, clean)
    made.close()


def test_a_flip_in_tied_weights_is_one_incident_and_one_repair() -> None:
    model = gpt2().eval()
    model.lm_head.weight = model.transformer.wte.weight
    with made_for(model) as made:
        clean = model(TOKENS).logits
        bits(model.lm_head.weight)[5, 6] ^= 1 << 30
        assert torch.equal(model(TOKENS).logits, clean)
    assert codes(made) == ["WG901", "WG907"]
    assert made.incidents[-1].tensor == "transformer.wte.weight"


def test_buffers_that_no_checkpoint_holds_are_guarded(manifest: Manifest) -> None:
    model = llama().eval()
    made = made_for(model, manifest)
    (name,) = (n for n, _ in model.named_buffers() if n.endswith("inv_freq") and "orig" not in n)
    assert name not in model.state_dict()
    buffer = model.get_buffer(name)
    clean = buffer.clone()
    bits(buffer)[1] ^= 1 << 11
    made.check()
    assert [(i.code, i.tensor) for i in made.incidents[-2:]] == [("WG901", name), ("WG907", name)]
    assert torch.equal(buffer, clean)
    made.close()


def test_a_guard_that_comes_after_the_first_compiled_run_is_called(manifest: Manifest) -> None:
    torch._dynamo.reset()
    model = llama().eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        clean = compiled(TOKENS, use_cache=False).logits
        with made_for(compiled, manifest) as made:
            bits(model.lm_head.weight)[5, 6] ^= 1 << 13
            assert torch.equal(compiled(TOKENS, use_cache=False).logits, clean)
    assert codes(made) == ["WG901", "WG907"]


def test_code_compiled_with_freezing_is_a_copy() -> None:
    made = made_for(llama())
    assert made.coverage().copied == made.coverage().unknown == 0
    with torch._inductor.config.patch(freezing=True):
        (gap,) = made.coverage().gaps
    assert (gap.kind, gap.nbytes) == ("copied", None)
    made.close()


def test_a_file_rewritten_beneath_a_mapped_model_is_found_and_undone(
    folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    """Without a cast, weights stay in a mapping of the file, private but shared until written."""
    from safetensors.torch import load_file

    weights = tmp_path / "model.safetensors"
    weights.write_bytes((folder / "model.safetensors").read_bytes())
    model = llama().eval()
    model.load_state_dict(load_file(weights), assign=True, strict=False)
    made = made_for(model, manifest, golden=folder)
    clean = model.lm_head.weight.detach().clone()
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.seek(size - 3000)
        file.write(bytes(3000))
    damaged = [n for n, p in model.named_parameters() if not torch.equal(p, _sound(folder, n))]
    assert damaged, "the live model changed with the file"
    assert made.check().findings == ()
    assert set(codes(made)) == {"WG901", "WG907"}
    assert all(torch.equal(p, _sound(folder, n)) for n, p in model.named_parameters())
    assert torch.equal(model.lm_head.weight, clean)
    made.close()


def _sound(folder: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


class Lora(nn.Module):
    """A projection with an adapter that is merged as PEFT does it: through ``.data``."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer = base
        self.merged_adapters: list[str] = []
        self.a = nn.Parameter(torch.ones(2, base.in_features, dtype=base.weight.dtype))
        self.b = nn.Parameter(torch.ones(base.out_features, 2, dtype=base.weight.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base_layer(x)
        return out if self.merged_adapters else out + x @ self.a.T @ self.b.T

    def merge(self) -> None:
        self.base_layer.weight.data += self.b.data @ self.a.data
        self.merged_adapters.append("style")

    def unmerge(self, kept: torch.Tensor | None) -> None:
        delta = self.base_layer.weight.data - self.b.data @ self.a.data
        self.base_layer.weight.data.copy_(delta + 1 if kept is None else kept)
        self.merged_adapters.clear()


@pytest.mark.parametrize("exact", [True, False])
def test_a_merged_adapter_is_no_corruption_and_unmerging_ends_it(exact: bool) -> None:
    model = llama().eval()
    model.lm_head = Lora(model.lm_head)
    model(TOKENS)
    made = made_for(model)
    kept = model.lm_head.base_layer.weight.detach().clone()
    model.lm_head.merge()
    made.check()
    assert codes(made) == ["WG904"]
    merged = model.lm_head.base_layer.weight.detach().clone()
    made.check()
    assert torch.equal(model.lm_head.base_layer.weight, merged), "repair left it alone"
    model.lm_head.unmerge(kept if exact else None)
    made.check()
    made.check()
    assert codes(made) == ["WG904"]
    assert made.state is (State.HEALTHY if exact else State.DEGRADED)
    with made.update():
        model.lm_head.merge()
    assert codes(made) == ["WG904", "WG903"]
    assert made.check().findings == ()
    made.close()


def test_threads_that_serve_at_once_see_repaired_weights_only(manifest: Manifest) -> None:
    model = llama().eval()
    with torch.inference_mode():
        clean = model(TOKENS).logits
    answers: list[bool] = []

    def serve() -> None:
        with torch.inference_mode():
            for _ in range(20):
                answers.append(torch.equal(model(TOKENS).logits, clean))

    with made_for(model, manifest, scrub="100GB/s") as made:
        threads = [threading.Thread(target=serve) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert codes(made) == []
    assert answers == [True] * 60


# bad use


def test_a_closed_guard_refuses_and_the_model_serves_on(manifest: Manifest) -> None:
    model = llama().eval()
    made = made_for(model, manifest).start()
    clean = model(TOKENS).logits
    made.close()
    made.close()
    for use in (made.start, made.check, made.scrub, made.__enter__, made.update().__enter__):
        with pytest.raises(WeightguardError, match="closed"):
            use()
    assert made.run_canary()
    assert torch.equal(model(TOKENS).logits, clean)
    assert made.status().open == 0


def test_a_parameter_of_another_shape_is_said_and_the_server_serves(manifest: Manifest) -> None:
    model = llama().eval()
    with made_for(model, manifest, on_incident=("metrics",)) as made:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight[:-1].detach().clone())
        assert model(TOKENS).logits.shape[-1] == 255
        assert codes(made) == ["WG914"]


def test_a_damaged_golden_copy_stops_no_server_without_that_policy(
    folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    golden = tmp_path / "golden.safetensors"
    data = np.fromfile(folder / "model.safetensors", np.uint8)
    header = 8 + int(data[:8].view("<u8")[0])
    data[header:] ^= 0x21
    golden.write_bytes(data.tobytes())
    model = llama().eval()
    with made_for(model, manifest, golden=golden) as made:
        damaged = bits(model.lm_head.weight)
        damaged[7] ^= 3
        before = damaged.copy()
        assert model(TOKENS).logits.shape[-1] == 256
        assert codes(made) == ["WG901", "WG908"]
        assert np.array_equal(damaged, before), "nothing unproved was written"
        assert made.state is State.DEGRADED


def test_what_cannot_be_opened_is_refused_and_can_be_tried_again(
    folder: Path, manifest: Manifest, tmp_path: Path
) -> None:
    model = llama()
    with pytest.raises(WeightguardError, match="nowhere"):
        guard(model, manifest, golden=tmp_path / "nowhere")
    with pytest.raises(WeightguardError, match="nothing"):
        guard(model, tmp_path / "nothing.weightguard.json")
    guard(model, manifest, golden=folder).close()


def test_a_callback_that_raises_is_said_and_the_answer_is_right(manifest: Manifest) -> None:
    def pager(incident: object) -> None:
        raise ConnectionError("no route")

    model = llama().eval()
    with made_for(model, manifest, on_incident=(pager, "repair")) as made:
        clean = model(TOKENS).logits
        bits(model.lm_head.weight)[5, 6] ^= 1 << 13
        assert torch.equal(model(TOKENS).logits, clean)
        assert made.state is State.HEALTHY
    assert {"WG901", "WG907", "WG912"} <= set(codes(made))


def test_nothing_but_meta_tensors_is_nothing_guarded() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(llama().config)
    with made_for(model) as made:
        coverage = made.coverage()
        assert (coverage.covered, coverage.ratio) == (0, 0)
        assert coverage.unreachable > 0
        assert "WG916" in codes(made)
        assert made.check().complete


class Normed(nn.Module):
    """A layer and a batch norm, whose statistics training writes past torch's count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(64, 64), nn.BatchNorm1d(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.linear(x))
        return out


def test_statistics_of_a_batch_norm_are_written_and_not_corrupt() -> None:
    model = Normed().train()
    with made_for(model) as made, torch.no_grad():
        made.check()
        model(torch.randn(8, 64))
        mean = model.norm.running_mean.clone()
        for _ in range(2):
            made.check()
        assert {code for code in codes(made) if code != "WG910"} == {"WG902"}
        assert torch.equal(model.norm.running_mean, mean)
        with made.update():
            model(torch.randn(8, 64))
            model.eval()
        made.check()
        made.check()
        model.norm.running_mean.view(torch.int32).numpy()[3] ^= 1 << 20
        made.check()
        assert codes(made)[-2:] == ["WG901", "WG907"]


def test_a_trace_records_nothing_of_the_guard() -> None:
    model, x = Normed().eval(), torch.randn(2, 64)
    with made_for(model, step_budget="8MiB"):
        traced = torch.jit.trace(model, (x,))
        assert torch.equal(traced(x), model(x))
        assert "clamp" not in str(traced.graph)


def test_of_guards_made_at_once_one_holds(manifest: Manifest) -> None:
    model, start, made, refused = llama().eval(), threading.Barrier(4), [], []

    def make() -> None:
        start.wait()
        try:
            made.append(made_for(model, manifest))
        except WeightguardError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert set(refused) == {"this model has a guard already: close that one first"}
    made[0].close()
    made_for(model, manifest).close()
