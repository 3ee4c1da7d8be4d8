"""The canary: the final logits of a few fixed tokens, and how far they may move elsewhere."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from weightguard import Manifest, WeightguardError
from weightguard.calibration import Canary
from weightguard.salient import significant
from weightguard_integrations.torch.blocks import Tokens, logits_of
from weightguard_integrations.torch.stack import stack_of

if TYPE_CHECKING:
    import torch
    from torch import nn

CANARY_TOKENS = 13
TOLERANCE_MARGIN = 2.0
"""Tolerance over the greatest measured difference: of two correct results, each may be off by
as much, in opposite directions."""
FLOAT32_WAYS = ("float64", "threads", "context")
"""Ways to compute in which only the rounding of float32 shows."""
HALF_DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class RecordedCanary:
    """The canary's record, and its logits [vocabulary]."""

    record: Canary
    logits: NDArray[np.float32]


def record_canary(model: nn.Module, tokens: Tokens) -> RecordedCanary:
    """Run the canary and measure what other threads, orders of summation and dtypes change.

    ``model`` is in float32 and is so afterwards, bit for bit. Raises WeightguardError for
    logits that are not finite.
    """
    reference = final_logits(model, tokens)
    differences = dict(_differences(model, tokens, reference))
    rounding = max(differences[way] for way in FLOAT32_WAYS if way in differences)
    measured = {"float32": rounding, **{d: differences[d] for d in HALF_DTYPES if d in differences}}
    tolerances = {d: significant(TOLERANCE_MARGIN * value) for d, value in measured.items()}
    record = Canary(
        tuple(tokens),
        significant(entropies(reference[None])[0]),
        {way: significant(value) for way, value in sorted(differences.items())},
        tolerances,
    )
    return RecordedCanary(record, reference.numpy().astype(np.float32))


def final_logits(model: nn.Module, tokens: Tokens) -> torch.Tensor:
    """Return the logits [vocabulary] after the last of ``tokens``."""
    import torch

    return logits_of(model, torch.tensor([list(tokens)]))[0, -1].clone()


def entropies(logits: torch.Tensor) -> list[float]:
    """Return the entropy of each row's distribution in nats, for logits [rows, vocabulary]."""
    logs = logits.double().log_softmax(-1)
    found: list[float] = (-(logs.exp() * logs).nansum(-1)).tolist()
    return found


def _differences(
    model: nn.Module, tokens: Tokens, reference: torch.Tensor
) -> Iterator[tuple[str, float]]:
    """Yield each other way to run, with its greatest |difference| from ``reference``."""
    import torch

    def off(logits: torch.Tensor) -> float:
        return float((logits.double() - reference.double()).abs().max())

    yield "threads", max(off(_on_threads(model, tokens, n)) for n in (1, 2, 3, 4))
    # a longer input takes other kernels; causal attention makes its further tokens irrelevant
    longer = torch.tensor([[*tokens, *tokens, *tokens]])
    yield "context", off(logits_of(model, longer)[0, len(tokens) - 1])
    # every float32 is a float64, so the way there and back leaves the weights as they are
    try:
        wide = _runnable(model.double(), tokens)
    finally:
        model.float()
    if wide is not None:
        yield "float64", off(wide)
    for name in HALF_DTYPES:
        narrow = _runnable(copy.deepcopy(model).to(getattr(torch, name)), tokens)
        if narrow is not None and narrow.isfinite().all():
            yield name, off(narrow)


def _runnable(model: nn.Module, tokens: Tokens) -> torch.Tensor | None:
    """Return the final logits in the model's present dtype, None where it cannot run in it."""
    import torch

    try:
        logits: torch.Tensor = model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits
    except (RuntimeError, NotImplementedError):
        return None  # its code fixes a dtype somewhere
    return logits[0, -1].clone()


def _on_threads(model: nn.Module, tokens: Tokens, threads: int) -> torch.Tensor:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return final_logits(model, tokens)
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class CanaryComparison:
    """A live model's canary beside the recorded one.

    ``difference`` is the greatest |difference| of a logit, infinite where one is not finite;
    ``tolerance`` what it may be: 0 on the recorded stack, where equal weights give equal bits.
    """

    same_stack: bool
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the model does what it did when it was calibrated."""
        return self.difference <= self.tolerance


def compare_canary(model: nn.Module, manifest: Manifest) -> CanaryComparison:
    """Run the canary of a calibrated manifest: bit for bit on its stack, by tolerance elsewhere.

    Raises ManifestError for a manifest without calibration, and WeightguardError for a model of
    another vocabulary or a dtype that no tolerance was measured for.
    """
    import torch

    recorded = torch.from_numpy(manifest.canary_logits())
    calibration = manifest.document.calibration
    assert calibration is not None, "a manifest without calibration has no logits"
    stack = stack_of(model)
    tokens = torch.tensor([list(calibration.canary.tokens)], device=next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits[0, -1].float().cpu()
    if logits.shape != recorded.shape:
        raise WeightguardError(
            f"the model gives {len(logits)} logits, the manifest holds {len(recorded)}: "
            "it is the manifest of another model."
        )
    same = stack == calibration.stack
    tolerance = 0.0 if same else calibration.canary.tolerances.get(stack.dtype)
    if tolerance is None:
        raise WeightguardError(
            f"no tolerance was measured for a model in {stack.dtype}. "
            f"Run it in one of {', '.join(sorted(calibration.canary.tolerances))}."
        )
    difference = float((logits - recorded).abs().max())
    return CanaryComparison(same, math.inf if math.isnan(difference) else difference, tolerance)
