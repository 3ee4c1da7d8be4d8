"""Sentinels on SmolLM2: no alarm on held-out prompts, and zeroed super weights are heard."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.integrations.torch.real_folder import smollm2_folder
from weightguard import open_checkpoint
from weightguard_integrations.torch.activations import calibrate_limits, profiles
from weightguard_integrations.torch.blocks import find_blocks
from weightguard_integrations.torch.loading import load_model
from weightguard_integrations.torch.prompts import DECODE, PADDED, make_prompts
from weightguard_integrations.torch.sentinels import Sentinels
from weightguard_integrations.torch.stack import deterministic

pytestmark = [pytest.mark.proof, pytest.mark.real]

DECODED = 4


def test_sound_prompts_are_silent_and_zeroed_super_weights_are_not(
    claim: Callable[[str], None],
) -> None:
    folder = smollm2_folder()
    with open_checkpoint(folder) as checkpoint, deterministic(None):
        loaded = load_model(folder, checkpoint)
        model, blocks = loaded.model, find_blocks(loaded.model, loaded.config)
        prompts = make_prompts(loaded.encode, loaded.vocabulary, None, 8192)
        limits = calibrate_limits(list(profiles(model, blocks, prompts.activations)))
        sentinels = Sentinels(blocks, limits.massive, limits.bounds, 576)
        counted = 0
        for kind, sequences in prompts.held_out.items():
            for sequence in sequences:
                cut = max(2, len(sequence) - DECODED) if kind == DECODE else len(sequence)
                output = model(input_ids=torch.tensor([sequence[:cut]]), use_cache=True)
                for token in sequence[cut:]:
                    model(
                        input_ids=torch.tensor([[token]]),
                        past_key_values=output.past_key_values, use_cache=True,
                    )  # fmt: skip
                assert sentinels.read() == [], kind
                counted += 1
        rows = prompts.held_out[PADDED]
        width = max(map(len, rows))
        tokens = torch.tensor([[0] * (width - len(s)) + list(s) for s in rows])
        mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in rows])
        model.generate(tokens, attention_mask=mask, max_new_tokens=DECODED, do_sample=False)
        assert sentinels.read() == [], "left padding, generate"
        weight = model.get_parameter("model.layers.11.mlp.down_proj.weight")
        weight[507, 1229] = weight[507, 1487] = 0
        heard = 0
        for sequence in prompts.held_out["english"]:
            model(input_ids=torch.tensor([sequence]), use_cache=True)
            heard += bool(sentinels.read())
    english = len(prompts.held_out["english"])
    assert heard == english
    claim(
        f"sentinels, SmolLM2: 0 alarms in {counted} held-out prompts and {len(rows)} padded ones; "
        f"super weights zeroed: {heard} of {english} prompts heard"
    )
