"""The blocks of a decoder, and running them: hidden states, losses, batches of equal length."""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from weightguard.errors import WeightguardError

if TYPE_CHECKING:
    import torch
    from torch import nn

Tokens: TypeAlias = Sequence[int]

MAX_BATCH_TOKENS = 512
"""Tokens in one forward pass; bounds the memory for activations and logits."""


def find_blocks(model: nn.Module, config: Any) -> nn.ModuleList:
    """Return the list of the model's decoder blocks.

    Raises WeightguardError for a model whose blocks are not one list.
    """
    from torch import nn

    count = config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise WeightguardError(
            f"the blocks of {type(model).__name__} are not a list of {count} modules, so their "
            "activations cannot be observed. Calibrate a decoder-only model."
        )
    return lists[0]


def batches(sequences: Sequence[Tokens]) -> Iterator[torch.Tensor]:
    """Yield all sequences as int64 tensors [batch, length], those of equal length together."""
    import torch

    by_length: dict[int, list[Tokens]] = defaultdict(list)
    for sequence in sequences:
        by_length[len(sequence)].append(sequence)
    for length, group in sorted(by_length.items()):
        step = max(1, MAX_BATCH_TOKENS // length)
        for first in range(0, len(group), step):
            yield torch.tensor([list(s) for s in group[first : first + step]])


def padded_batches(sequences: Sequence[Tokens]) -> Iterator[tuple[torch.Tensor, list[int]]]:
    """Yield all sequences as int64 tensors [batch, length] with each one's own length.

    Shorter ones are padded on the right, which causal attention makes invisible to them.
    """
    import torch

    group: list[Tokens] = []
    for sequence in [*sorted(sequences, key=len), None]:
        full = sequence is None or (len(group) + 1) * len(sequence) > MAX_BATCH_TOKENS
        if group and full:
            width = len(group[-1])
            rows = [[*tokens, *[0] * (width - len(tokens))] for tokens in group]
            yield torch.tensor(rows), [len(tokens) for tokens in group]
            group = []
        if sequence is not None:
            group.append(sequence)


def logits_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits [batch, length, vocabulary] of ``tokens`` [batch, length].

    Raises WeightguardError when one of them is not finite.
    """
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    if not logits.isfinite().all():
        raise WeightguardError(
            "the model gives NaN or infinite logits, so nothing can be calibrated. "
            "`weightguard audit` looks for damaged weights."
        )
    return logits


def mean_loss(model: nn.Module, sequences: Sequence[Tokens]) -> float:
    """Return the mean cross-entropy of the next token over all sequences, in nats.

    A damaged model may give infinite logits; the loss is then infinite.
    """
    import torch
    from torch.nn import functional

    total, count = 0.0, 0
    for tokens in batches([s for s in sequences if len(s) > 1]):
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
        losses = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        total += float(losses) * tokens[:, 1:].numel()
        count += tokens[:, 1:].numel()
    return total / count if torch.tensor(total).isfinite() else float("inf")


def run_blocks(
    model: nn.Module, tokens: torch.Tensor, mask: torch.Tensor | None = None, **options: Any
) -> Any:
    """Run the decoder on ``tokens`` without its head, for what hooks see; return its output.

    ``mask`` [batch, length] is 0 at padding, in front of which positions are not counted.
    """
    body = getattr(model, "base_model", model)
    arguments: dict[str, Any] = {"input_ids": tokens, "use_cache": False, **options}
    if mask is not None:
        arguments["attention_mask"] = mask
        if "position_ids" in inspect.signature(body.forward).parameters:
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return body(**arguments)


@contextlib.contextmanager
def hidden_states(blocks: nn.ModuleList) -> Iterator[list[torch.Tensor]]:
    """Yield a list that holds, after a forward pass, each block's output [batch, length, hidden].

    A further pass replaces what it holds.
    """
    import torch

    states: list[torch.Tensor] = [torch.empty(0)] * len(blocks)

    def keep(number: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states[number] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [block.register_forward_hook(keep(n)) for n, block in enumerate(blocks)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
