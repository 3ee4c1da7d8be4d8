"""What a tensor's name says about which numbers are usual in it."""

from __future__ import annotations

import re

# moments and accumulators of PyTorch's optimizers: zero wherever there was no gradient
_OPTIMIZER_STATE = re.compile(
    r"(?:^|[./])(?:exp_avg|exp_avg_sq|max_exp_avg_sq|exp_inf|momentum_buffer|square_avg|grad_avg|"
    r"acc_delta|sum)$"
)
# second factors of adapters, which training starts from zero so that the adapter does nothing
_ADAPTER_OUTPUT = re.compile(r"(?:^|[._/])(?:lora_B|lora_embedding_A|lora_up)(?:[._/]|$)")


def is_optimizer_state(name: str) -> bool:
    """Return whether a name is that of a moment that an optimizer keeps."""
    return _OPTIMIZER_STATE.search(name[-1000:]) is not None


def is_adapter_output(name: str) -> bool:
    """Return whether a name is that of a low-rank adapter's factor that starts at zero."""
    return _ADAPTER_OUTPUT.search(name[:1000]) is not None
