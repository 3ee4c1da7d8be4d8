"""The stack that numbers come from: offline, deterministic, and recorded beside them."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from weightguard.calibration import Stack
from weightguard.errors import WeightguardError

if TYPE_CHECKING:
    import torch

REQUIRED = ("torch", "transformers", "accelerate")
SEED = 0
_CPU_INFO = Path("/proc/cpuinfo")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
}


def require_torch() -> None:
    """Make sure that the extra is installed, and that its libraries start offline and silent.

    Raises WeightguardError when a library is missing.
    """
    missing = [name for name in REQUIRED if find_spec(name) is None]
    if missing:
        raise WeightguardError(
            f"running a model needs {', '.join(missing)}: "
            "pip install 'weightguard-integrity[torch]'"
        )
    os.environ.update(_OFFLINE)
    # OpenMP threads that spin at barriers run 15 times slower where another process wants a core
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextlib.contextmanager
def deterministic(threads: int | None) -> Iterator[None]:
    """Run the block without gradients, from one seed, on ``threads`` threads (torch's default).

    What is changed for the process is put back afterwards.
    """
    import torch

    before = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads or before)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(SEED)
            yield
    finally:
        torch.use_deterministic_algorithms(strict)
        torch.set_num_threads(before)


def stack_of(model: torch.nn.Module) -> Stack:
    """Return the stack that ``model`` runs on now."""
    import torch
    import transformers

    weight = next(model.parameters())
    return Stack(
        torch=str(torch.__version__),
        transformers=str(transformers.__version__),
        device=weight.device.type,
        processor=_processor(),
        dtype=str(weight.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def _processor() -> str:
    import torch

    return f"{_processor_model()}, {torch.backends.cpu.get_cpu_capability()}"


def _processor_model() -> str:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), platform.processor() or platform.machine())
