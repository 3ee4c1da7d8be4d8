"""What a guard finds in a live SmolLM2, and what it says of a sound one: counts.

    python benchmarks/guard_torch_campaign.py [--quick] [--only flips|super|prompts|decode]

flips: single bits of uniformly drawn elements, several at a time in blocks of their own; each must
be found within one pass, located to element and bit, and undone bit for bit from residues alone.
super: every bit of every super weight, found and undone by the very next forward pass.
prompts, decode: a sound model under everything that is on by default; any incident is a false
alarm. Prompts run in bf16 and float32, eager and compiled, on several numbers of threads, beside
threads that compute; decoding samples one token after the other, in batches of 1 and 4.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.guard_torch_models import MODELS, calibrated, load
from benchmarks.guard_torch_prompts import diverse_prompts
from tests.integrations.torch.real_folder import smollm2_folder
from weightguard import Manifest
from weightguard.guard.schedule import BlockRef
from weightguard_integrations.torch import TorchGuard, guard

AT_ONCE = 250
PASS = 1 << 40
"""More bytes than a model has: one pass is the most that is checked at a time."""
PROMPT = torch.arange(1, 25)[None]
SOUND = {"WG910"}
"""What a sound guard says of buffers that no checkpoint holds."""


def live(model: LlamaForCausalLM, name: str) -> NDArray[np.uint8]:
    """Return the bytes of a live tensor, past every account of torch's."""
    tensor = dict(model.named_parameters()) | dict(model.named_buffers())
    return tensor[name].detach().view(-1).view(torch.uint8).numpy()


def campaign_flips(model: LlamaForCausalLM, manifest: Manifest, flips: int, seed: int) -> None:
    generator = random.Random(seed)
    settings = {"scrub": None, "canary": None, "on_incident": ("metrics", "repair")}
    with guard(model, manifest, **settings) as made:
        blocks = list(made._rounds.scrubber.schedule)
        sizes = [block.nbytes for block in blocks]
        clean = {name: live(model, name).copy() for name, _ in made.baseline.sizes}
        counted: Counter[str] = Counter()
        bits: Counter[int] = Counter()
        while counted["flips"] < flips:
            drawn = dict.fromkeys(generator.choices(blocks, sizes, k=AT_ONCE))
            chosen = list(drawn)[: flips - counted["flips"]]
            counted.update(one_pass(model, made, generator, chosen, bits))
            equal = all(np.array_equal(live(model, n), clean[n]) for n in clean)
            counted["passes"] += 1
            counted["passes after which every byte of the model was right"] += equal
            if counted["passes"] % 4 == 0:
                print(dict(counted), flush=True)
    print("flips:", dict(counted), "by bit of the element:", dict(sorted(bits.items())))


def one_pass(
    model: LlamaForCausalLM,
    made: TorchGuard,
    generator: random.Random,
    blocks: list[BlockRef],
    bits: Counter[int],
) -> Counter[str]:
    """Flip a bit in each of some blocks, let one pass go by, and count what became of them."""
    expected = {}
    for block in blocks:
        at, bit = generator.randrange(block.start, block.stop), generator.randrange(8)
        live(model, block.tensor)[at] ^= np.uint8(1 << bit)
        kind = made.baseline.tensors[block.tensor].tensor
        element, byte = divmod(at, kind.dtype.block_bytes)
        index = tuple(int(i) for i in np.unravel_index(element, kind.shape))
        expected[block.tensor, block.block] = (index, [8 * byte + bit])
        bits[8 * byte + bit] += 1
    seen = len(made.incidents)
    made.scrub(PASS)
    counted: Counter[str] = Counter(flips=len(blocks))
    # the guard keeps its last incidents only: there are fewer in a pass
    news = made.incidents[seen:] if seen < 5000 else made.incidents[-2 * len(blocks) :]
    for incident in news:
        place = incident.finding.location
        key = (incident.tensor or "", place.block or 0)
        if incident.code == "WG901" and key in expected:
            counted["found"] += 1
            (told,) = incident.finding.evidence["elements"]
            index, flipped = expected[key]
            counted["located"] += (place.element, told["flipped_bits"]) == (index, flipped)
        elif incident.code == "WG907":
            counted["undone from residues"] += incident.finding.evidence["source"] == "residues"
        else:
            counted[f"unexpected {incident.code}"] += 1
    return counted


def campaign_super(model: LlamaForCausalLM, manifest: Manifest) -> None:
    counted: Counter[str] = Counter()
    with guard(model, manifest, scrub=None, on_incident=("metrics", "repair")) as made:
        made.set_sentinels(None)  # they would be heard first, and are not what is counted
        clean = model(PROMPT).logits
        for pin in made._pins.pinned:
            for bit in range(8 * (pin.stop - pin.start)):
                live(model, pin.tensor)[pin.start + bit // 8] ^= np.uint8(1 << bit % 8)
                seen = len(made.incidents)
                answered = torch.equal(model(PROMPT).logits, clean)
                told = [incident.code for incident in made.incidents[seen:]]
                counted["bits flipped"] += 1
                counted["found by the next forward pass"] += told == ["WG901", "WG907"]
                counted["undone before it computed: equal logits"] += answered
    print("super weights:", len(made._pins.pinned), dict(counted))


def alarms(made: TorchGuard, counted: Counter[str]) -> None:
    made.read_sentinels()
    for incident in made.incidents:
        if incident.code not in SOUND:
            counted[f"FALSE ALARM {incident.code}"] += 1
            print(incident.finding.message, flush=True)


def campaign_prompts(folder: Path, manifest: Manifest, part: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ways = {
        "bf16, eager, 1 thread": (torch.bfloat16, False, 1, 1),
        "bf16, eager, 4 threads, beside load": (torch.bfloat16, False, 4, 4),
        "float32, eager, 2 threads": (torch.float32, False, 2, 4),
        "bf16, compiled (aot_eager, whole graph)": (torch.bfloat16, True, 2, 8),
    }
    for way, (dtype, compiled, threads, share) in ways.items():
        counted: Counter[str] = Counter()
        model = load(folder, manifest, dtype)
        torch.set_num_threads(1)
        with guard(model, manifest, canary="5s", on_incident=("metrics",)) as made:
            run = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
            torch.set_num_threads(threads)
            with torch.inference_mode(), load_beside(3 if "load" in way else 0):
                prompts = list(diverse_prompts(tokenizer.encode, model.config.vocab_size))
                for kind, tokens in prompts[:: share * part]:
                    (run if compiled else model)(torch.tensor([tokens]), use_cache=not compiled)
                    counted[kind] += 1
            counted["canary runs that were right"] += made.run_canary()
            passes, total = made.status().passes, counted.total() - 1
            alarms(made, counted)
        print(f"prompts, {way}: {total} prompts, {passes} passes,", dict(counted), flush=True)


@contextmanager
def load_beside(threads: int) -> Iterator[None]:
    """Compute in some threads meanwhile."""
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            torch.randn(256, 256) @ torch.randn(256, 256)

    burning = [threading.Thread(target=burn) for _ in range(threads)]
    for thread in burning:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in burning:
            thread.join()


def campaign_decode(
    model: LlamaForCausalLM, folder: Path, manifest: Manifest, steps: int, seed: int
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    prompts = list(diverse_prompts(tokenizer.encode, model.config.vocab_size))
    random.Random(seed).shuffle(prompts)
    torch.manual_seed(seed)
    counted: Counter[str] = Counter()
    with guard(model, manifest, on_incident=("metrics",)) as made, torch.inference_mode():
        for number, (_, tokens) in enumerate(prompts):
            if counted["steps"] >= steps:
                break
            batch = 4 if number % 4 == 3 else 1
            cache, step = DynamicCache(), torch.tensor([tokens[:64]] * batch)
            for _ in range(100):
                logits = model(step, past_key_values=cache, use_cache=True).logits[:, -1]
                step = torch.multinomial(logits.float().softmax(-1), 1)
                counted["steps"] += 1
                counted["tokens"] += batch
        blocks = made.metrics.value("weightguard_blocks_verified_total")  # type: ignore[attr-defined]
        alarms(made, counted)
    print(f"decode: {blocks:.0f} block checks,", dict(counted), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of it")
    parser.add_argument("--only", choices=("flips", "super", "prompts", "decode"))
    parser.add_argument("--seed", type=int, default=1, help="of flips and decoded texts")
    parser.add_argument("--flips", type=int, default=10_000, help="of bits")
    parser.add_argument("--steps", type=int, default=10_000, help="to decode")
    arguments = parser.parse_args()
    part, folder = 20 if arguments.quick else 1, smollm2_folder()
    assert folder == MODELS["SmolLM2-135M-Instruct"]()
    torch.set_num_threads(1)
    began = time.monotonic()
    with calibrated(folder) as manifest:
        model = load(folder, manifest, torch.bfloat16)
        if arguments.only in (None, "super"):
            campaign_super(model, manifest)
        if arguments.only in (None, "flips"):
            campaign_flips(model, manifest, arguments.flips // part, arguments.seed)
        if arguments.only in (None, "prompts"):
            campaign_prompts(folder, manifest, part)
        if arguments.only in (None, "decode"):
            campaign_decode(model, folder, manifest, arguments.steps // part, arguments.seed)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
