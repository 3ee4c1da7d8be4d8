"""The canary of a guarded model: its own logits, recorded when it was sealed, bit for bit.

Between two runs of one model on one machine nothing may change, whatever kernels it runs on: so
a single bit counts, also in copies of weights that no digest reaches. It is recorded and run in
the same way, on the model as it is called without a compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


class LiveCanary:
    """Fixed tokens, and the logits that a sealed model gave for them."""

    def __init__(self, root: nn.Module, tokens: Sequence[int]):
        """``root`` takes ``input_ids`` and gives logits, as language models do."""
        self._root, self._tokens = root, list(tokens)
        self._recorded = self.run()

    def run(self) -> torch.Tensor:
        """Return the logits of the last position, shape (vocabulary,)."""
        import torch

        device = next(self._root.parameters()).device
        tokens = torch.tensor([self._tokens], device=device)
        with torch.inference_mode():
            output = self._root(input_ids=tokens, use_cache=False)
        logits: torch.Tensor = output.logits[0, -1].clone()
        return logits

    def record(self) -> None:
        """Take what the model answers now as right: its weights were changed on purpose."""
        self._recorded = self.run()

    def difference(self) -> float | None:
        """Return the greatest |difference| of a logit, None where all bits are equal."""
        import torch

        logits = self.run()
        same = torch.equal(logits.view(torch.uint8), self._recorded.view(torch.uint8))
        return None if same else float((logits.double() - self._recorded.double()).abs().max())
