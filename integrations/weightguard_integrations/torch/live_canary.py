"""The canary of a guarded model: its own logits, recorded when it was sealed, bit for bit.

Between two runs of one model on one machine nothing may change, whatever kernels it runs on: so
a single bit counts, also in copies of weights that no digest reaches. It is recorded and run in
the same way, on the model as it is called without a compiler. Only the number of threads can
become another one, and with it the order of summation: then the tolerance of a calibration holds.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from weightguard import IntegrityError
from weightguard.finding import Finding, finding
from weightguard.guard.aftermath import Aftermath
from weightguard.guard.incident import CANARY, RUNTIME_EXCEPTION

if TYPE_CHECKING:
    import torch
    from torch import nn

LOGGER = logging.getLogger("weightguard.guard")
MAX_MESSAGE = 500
"""Characters of what a model said as it failed."""


class LiveCanary:
    """Fixed tokens, and the logits that a sealed model gave for them."""

    def __init__(self, root: nn.Module, tokens: Sequence[int], tolerances: Mapping[str, float]):
        """``root`` takes ``input_ids`` and gives logits, as language models do.

        ``tolerances`` are those of a calibration, by dtype; without one for the weights' dtype
        nothing is judged on another number of threads.
        """
        self._root, self._tokens, self._tolerances = root, list(tokens), tolerances
        self.record()

    def run(self) -> torch.Tensor:
        """Return the logits of the last position, shape (vocabulary,)."""
        import torch

        device = next(self._root.parameters()).device
        tokens = torch.tensor([self._tokens], device=device)
        # past what a model that was compiled in place is called through
        eager: Callable[..., Any] = self._root._call_impl
        with torch.inference_mode():
            output = eager(input_ids=tokens, use_cache=False)
        logits: torch.Tensor = output.logits[0, -1].clone()
        return logits

    def record(self) -> None:
        """Take what the model answers now as right: its weights were changed on purpose."""
        import torch

        self._recorded, self._threads = self.run(), torch.get_num_threads()

    def difference(self) -> float | None:
        """Return the greatest |difference| of a logit, None where it is none that counts."""
        import torch

        logits = self.run()
        if torch.equal(logits.view(torch.uint8), self._recorded.view(torch.uint8)):
            return None
        difference = float((logits.double() - self._recorded.double()).abs().max())
        return None if difference <= self._tolerance() else difference

    def _tolerance(self) -> float:
        import torch

        if torch.get_num_threads() == self._threads:
            return -math.inf  # bits that differ count, those of zeros and of NaN as well
        dtype = str(next(self._root.parameters()).dtype).removeprefix("torch.")
        return self._tolerances.get(dtype, math.inf)


def canary_finding(
    difference: Callable[[], float | None], checked: Aftermath | None = None
) -> Finding | None:
    """Run a canary; return WG906 or WG909 where it finds something, None where it does not.

    ``checked`` is what a check of all weights came to because of an earlier run. Raises what the
    guard raises in a forward pass.
    """
    since = "" if checked is None else f"; {checked}"
    try:
        found = difference()
    except IntegrityError:
        raise
    except Exception as error:
        if checked is not None:  # else it runs once more
            LOGGER.exception("the canary could not run")
        raised = f"the canary raised {type(error).__name__}: {error}"[:MAX_MESSAGE]
        return finding(RUNTIME_EXCEPTION, raised + since)
    if found is None:
        return None
    message = f"a logit differs by {found:.3g} from the sealed model's{since}"
    return finding(CANARY, message, evidence={"difference": repr(found)})
