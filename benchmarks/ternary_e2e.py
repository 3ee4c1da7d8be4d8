"""Tokens a second of a model with BitNet 2B4T's shape and random ternary weights, on two threads.

    python benchmarks/ternary_e2e.py [--layers 30] [--tokens 32] [--llama PYTHON] [--gguf FILE]

Hidden 2560, intermediate 6912, 30 layers, vocabulary 128,256: transformers' BitNetForCausalLM with
every BitLinear and the head (as int8) replaced, checked and unchecked; transformers' own layers
for reference (a few tokens, as they unpack all weights for each). ``--llama`` names a Python that
has llama-cpp-python: a model of the same sizes, written with the gguf package in TQ2_0 (a Llama,
since nothing of BitNet's own format is TQ2_0), is then timed with it. Needs 8 GB of memory.

Beside the whole token, the time on its ternary layers: ours summed over the calls of the layers,
llama.cpp's from the difference to a model of a third of the depth (so with attention and norms,
which are few milliseconds). torch itself runs on one thread beside the kernel's two, as its own
second thread would spin where the kernel's works; for the reference it has all.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from torch import nn
from transformers import BitNetConfig, BitNetForCausalLM
from transformers.integrations.bitnet import replace_with_bitnet_linear
from transformers.utils.quantization_config import BitNetQuantConfig

from weightguard_integrations import ternary
from weightguard_integrations.ternary.layers import TernaryLinear, replace_bitlinear

HIDDEN, INTERMEDIATE, VOCABULARY, HEADS, KEY_VALUE_HEADS = 2560, 6912, 128_256, 20, 5
PROMPT = 16
REFERENCE_TOKENS = 2

LLAMA = """
import sys, time, statistics
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=256, n_threads={threads}, n_threads_batch={threads}, verbose=False,
              logits_all=False)
model.eval(list(range(5, 5 + {prompt})))
times = []
for n in range({tokens}):
    start = time.perf_counter()
    model.eval([100 + n])
    times.append(time.perf_counter() - start)
print(statistics.median(times))
"""


def bitnet(layers: int, rng: np.random.Generator) -> BitNetForCausalLM:
    """Return the model with random packed codes in transformers' own layout."""
    config = BitNetConfig(num_hidden_layers=layers, max_position_embeddings=512)
    with torch.device("meta"):
        model = BitNetForCausalLM(config)
    replace_with_bitnet_linear(
        model, ["lm_head"], BitNetQuantConfig(linear_class="bitlinear", quantization_mode="offline")
    )
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config)
    for module in model.modules():
        if type(module).__name__ == "BitLinear":
            codes = random_codes(rng, module.out_features // 4, module.in_features)
            module.weight = nn.Buffer(torch.from_numpy(codes))
            module.weight_scale = nn.Buffer(torch.full((1,), 40.0))
            module.dtype = torch.float32
    for name, parameter in list(model.named_parameters()):
        place, _, leaf = name.rpartition(".")
        shape = parameter.shape
        values = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.02
        setattr(model.get_submodule(place), leaf, nn.Parameter(values, requires_grad=False))
    return model.eval()


def random_codes(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    codes = np.zeros((rows, columns), np.uint8)
    for shift in (0, 2, 4, 6):
        codes |= rng.integers(0, 3, codes.shape, np.uint8) << np.uint8(shift)
    return codes


class Pace(NamedTuple):
    """Median seconds of a token, and of its ternary layers."""

    token: float
    ternary: float


class Stopwatch:
    """Adds up the seconds of the calls of ternary layers."""

    def __init__(self, model: nn.Module):
        self.seconds = 0.0
        for module in model.modules():
            if isinstance(module, TernaryLinear) and module.packed.ternary:
                module.forward = partial(self._timed, module.forward)

    def _timed(self, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Any:
        start = time.perf_counter()
        y = forward(x)
        self.seconds += time.perf_counter() - start
        return y


def pace(model: nn.Module, watch: Stopwatch, tokens: int) -> Pace:
    """Return the median step of decoding with a cache."""
    ids = torch.randint(5, 1000, (1, PROMPT))
    with torch.no_grad():
        step = model(input_ids=ids, use_cache=True)
        times, layers = [], []
        for _ in range(tokens):
            ids = step.logits[:, -1:].argmax(-1)
            watch.seconds, start = 0.0, time.perf_counter()
            step = model(input_ids=ids, past_key_values=step.past_key_values, use_cache=True)
            times.append(time.perf_counter() - start)
            layers.append(watch.seconds)
    return Pace(statistics.median(times), statistics.median(layers))


def set_verify(model: nn.Module, verify: str) -> None:
    for module in model.modules():
        if isinstance(module, TernaryLinear):
            module.verify = verify


def write_gguf(path: Path, layers: int, rng: np.random.Generator) -> None:
    """Write a Llama of the same sizes: ternary layers in TQ2_0, embedding and head in Q8_0."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    tq2, q8 = gguf.GGMLQuantizationType.TQ2_0, gguf.GGMLQuantizationType.Q8_0

    def random(name: str, rows: int, columns: int, kind: gguf.GGMLQuantizationType) -> None:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (rows, columns // elements, size), np.uint8)
        if kind == tq2:
            blocks[..., :-2] = random_codes(rng, rows, columns // 4).reshape(rows, -1, 64)
        scale = np.array([0.025 if kind == tq2 else 0.001], np.float16).view(np.uint8)
        blocks[..., slice(-2, None) if kind == tq2 else slice(0, 2)] = scale
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=kind)

    random("token_embd.weight", VOCABULARY, HIDDEN, q8)
    random("output.weight", VOCABULARY, HIDDEN, q8)
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    shared = HIDDEN // HEADS * KEY_VALUE_HEADS
    for n in range(layers):
        for name, rows, columns in (
            ("attn_q", HIDDEN, HIDDEN), ("attn_k", shared, HIDDEN), ("attn_v", shared, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN), ("ffn_gate", INTERMEDIATE, HIDDEN),
            ("ffn_up", INTERMEDIATE, HIDDEN), ("ffn_down", HIDDEN, INTERMEDIATE),
        ):  # fmt: skip
            random(f"blk.{n}.{name}.weight", rows, columns, tq2)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{n}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_seconds(python: Path, path: Path, tokens: int, threads: int) -> float:
    """Return llama.cpp's median seconds of a token."""
    program = LLAMA.format(threads=threads, tokens=tokens, prompt=PROMPT)
    done = subprocess.run([python, "-c", program, path], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def llama_pace(models: dict[int, Path], python: Path, tokens: int, threads: int) -> Pace:
    """Return llama.cpp's pace on the deeper of two models."""
    (less, one), (more, other) = sorted(models.items())
    short = llama_seconds(python, one, tokens, threads)
    token = llama_seconds(python, other, tokens, threads)
    return Pace(token, (token - short) * more / (more - less))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", type=Path)
    asked = parser.parse_args()
    rng = np.random.default_rng(0)
    ternary.set_num_threads(asked.threads)
    model = bitnet(asked.layers, rng)
    torch.set_num_threads(asked.threads)
    with torch.compiler.set_stance("force_eager"):
        reference = pace(model, Stopwatch(model), REFERENCE_TOKENS)
    torch.set_num_threads(1)
    start = time.perf_counter()
    replaced = replace_bitlinear(model, int8=["lm_head"])
    print(f"{len(replaced)} layers packed in {time.perf_counter() - start:.0f} s", flush=True)
    watch = Stopwatch(model)
    found: dict[str, list[Pace]] = {"checked": [], "unchecked": [], "llama.cpp TQ2_0": []}
    with tempfile.TemporaryDirectory() as folder:
        models = {depth: Path(folder) / str(depth) for depth in (asked.layers // 3, asked.layers)}
        if asked.llama:
            for depth, path in models.items():
                write_gguf(path, depth, rng)
        for _ in range(asked.rounds):
            for name, verify in (("checked", "always"), ("unchecked", "off")):
                set_verify(model, verify)
                found[name].append(pace(model, watch, asked.tokens))
            if asked.llama:
                llama = llama_pace(models, asked.llama, asked.tokens, asked.threads)
                found["llama.cpp TQ2_0"].append(llama)
    show(found, reference)


def show(found: dict[str, list[Pace]], reference: Pace) -> None:
    """Print medians over the rounds, and of ratios within a round."""
    print(f"{'transformers':18}{1 / reference.token:7.3f} tokens/s")
    for name, paces in found.items():
        if paces:
            token, layers = (statistics.median(values) for values in zip(*paces, strict=True))
            ratio = statistics.median(
                pace.ternary / ours.ternary
                for pace, ours in zip(paces, found["checked"], strict=True)
            )
            print(
                f"{name:18}{1 / token:7.2f} tokens/s, {layers * 1e3:6.1f} ms a token on ternary "
                f"layers, {ratio:.2f} of checked"
            )


if __name__ == "__main__":
    main()
