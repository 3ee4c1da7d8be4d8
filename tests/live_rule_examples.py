"""Examples of the rules at run time: a live model comes to harm, and what its guard logs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.checkpoints import write_safetensors
from tests.conformance.arrays import ArrayAdapter, ArrayRuntime
from weightguard import fingerprint
from weightguard.guard import Gap, Guard, Settings
from weightguard.guard.ledger import Place
from weightguard_integrations.ternary import PackedTernary

Harm = Callable[[ArrayRuntime], object]


class _Lines(logging.Handler):
    """Keeps what is logged, as a service's log would show it."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name} {record.getMessage()}\n")


def logged(code: str) -> str:
    """Return the line about rule ``code`` that its example makes weightguard log."""
    logger, lines = logging.getLogger("weightguard"), _Lines()
    before = logger.level, logger.propagate
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        LIVE[code]()
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before[0])
        logger.propagate = before[1]
    shown = [line for line in lines.lines if line.split()[2].rstrip(":") == code]
    assert shown, f"the example of {code} does not show it: {lines.lines}"
    return "".join(shown[:1])


def _runtime() -> ArrayRuntime:
    generator = np.random.default_rng(8)
    weights = (generator.standard_normal((96, 96)) * 0.05).astype(np.float32)
    return ArrayRuntime({"layers.3.down_proj.weight": weights, "norm.weight": np.ones(96)})


def _harmed(harm: Harm, adapter: type[ArrayAdapter] = ArrayAdapter) -> None:
    runtime = _runtime()
    guard = Guard(adapter(runtime), settings=Settings(on_incident=("log", "repair")))
    harm(runtime)
    guard.check()


def _flip(runtime: ArrayRuntime) -> None:
    runtime.arrays["layers.3.down_proj.weight"].view(np.uint32)[5, 7] ^= 1 << 30


def _overwrite(runtime: ArrayRuntime) -> None:
    runtime.arrays["layers.3.down_proj.weight"][5] = 0


def _train(runtime: ArrayRuntime) -> None:
    runtime.arrays["layers.3.down_proj.weight"] *= 2
    runtime.versions["layers.3.down_proj.weight"] += 1


def _merge(runtime: ArrayRuntime) -> None:
    runtime.arrays["layers.3.down_proj.weight"] *= 2
    runtime.variants["layers.3.down_proj.weight"] = "french"


def _appear(runtime: ArrayRuntime) -> None:
    runtime.arrays["head.weight"] = np.ones((3, 4), np.float32)
    runtime.versions["head.weight"], runtime.variants["head.weight"] = 0, ""


class _Unreadable(ArrayAdapter):
    broken = False

    def read(self, name: str, start: int, stop: int) -> memoryview:
        if self.broken:
            raise OSError("the mapping is gone")
        return super().read(name, start, stop)


def _unreadable() -> None:
    adapter = _Unreadable(_runtime())
    guard = Guard(adapter, settings=Settings(on_incident=("log",)))
    adapter.broken = True
    logging.disable(logging.ERROR - 1)
    try:
        guard.check()
    finally:
        logging.disable(logging.NOTSET)


def _update() -> None:
    runtime = _runtime()
    guard = Guard(ArrayAdapter(runtime), settings=Settings(on_incident=("log",)))
    with guard.update():
        _train(runtime)


def _attested() -> None:
    runtime = _runtime()
    weights = runtime.arrays["layers.3.down_proj.weight"]
    tensors = {"layers.3.down_proj.weight": ("F32", weights.shape, weights.tobytes())}
    with fingerprint(write_safetensors(Path("model.safetensors"), tensors)) as manifest:
        Guard(ArrayAdapter(runtime), manifest, Settings(on_incident=("log",)))


def _uncovered() -> None:
    gap = Gap("layers.0.q_proj", "copied", 18432, "packed by the runtime for its kernels")
    Guard(ArrayAdapter(_runtime(), (gap,)), settings=Settings(on_incident=("log",)))


def _failing_callback() -> None:
    def page_the_operator(_incident: object) -> None:
        raise ConnectionError("no route to the pager")

    runtime = _runtime()
    settings = Settings(on_incident=("log", page_the_operator))
    guard = Guard(ArrayAdapter(runtime), settings=settings)
    _flip(runtime)
    guard.check()


def _damaged_baseline() -> None:
    runtime = _runtime()
    guard = Guard(ArrayAdapter(runtime), settings=Settings(on_incident=("log",)))
    digests = guard.baseline.tensors["norm.weight"].digests
    digests.flags.writeable = True
    digests[0, 0] ^= 1
    guard.check()


def _canary(fault: Exception | None) -> None:
    """A language model of one layer, whose output goes wrong though its weights do not."""
    from types import SimpleNamespace

    import torch
    from torch import nn

    from weightguard_integrations.torch import guard

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.eye(16))

        def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
            return SimpleNamespace(logits=self.table[input_ids])

    model = Model()
    made = guard(model, scrub=None, on_incident=("log",))
    made.set_canary([1, 2, 3], 60)

    def harm(_module: nn.Module, _inputs: object, output: SimpleNamespace) -> None:
        if fault is not None:
            raise fault
        output.logits[0, -1, 3] = 0.5

    model.register_forward_hook(harm)
    made.run_canary()
    made.close()


def _packed() -> None:
    """A checked product meets a flipped weight."""
    weight = np.random.default_rng(8).integers(-1, 2, (96, 96), np.int8)
    matrix = PackedTernary.from_int8(weight, 0.5, name="layers.3.down_proj")
    matrix.packed[77] ^= 1
    matrix.linear(np.ones((2, 96), np.float32), on_fault="repair")


def _sentinel() -> None:
    """A model of one block, whose massive activation goes missing."""
    import torch
    from torch import nn

    from weightguard.calibration import LayerBand, MassiveActivation
    from weightguard_integrations.torch.sentinels import Sentinels
    from weightguard_integrations.torch.torch_guard import sentinel_finding

    block = nn.Identity()
    band = MassiveActivation(5, 0, (LayerBand(0, 300.0, 900.0),))
    sentinels = Sentinels([block], (band,), (40.0,), 8)
    block(torch.ones(1, 4, 8))
    runtime = _runtime()
    guard = Guard(ArrayAdapter(runtime), settings=Settings(on_incident=("log",)))
    guard.report_incident(Place(""), sentinel_finding(sentinels.read()))


LIVE: dict[str, Callable[[], None]] = {
    "WG901": lambda: _harmed(_flip),
    "WG902": lambda: _harmed(_train),
    "WG903": _update,
    "WG904": lambda: _harmed(_merge),
    "WG905": _sentinel,
    "WG906": lambda: _canary(None),
    "WG907": lambda: _harmed(_flip),
    "WG908": lambda: _harmed(_overwrite),
    "WG909": lambda: _canary(IndexError("index 48213 is out of bounds")),
    "WG910": _attested,
    "WG911": _unreadable,
    "WG912": _failing_callback,
    "WG913": _damaged_baseline,
    "WG914": lambda: _harmed(lambda runtime: runtime.arrays.pop("norm.weight")),
    "WG915": lambda: _harmed(_appear),
    "WG916": _uncovered,
    "WG920": _packed,
    "WG921": _packed,
}
"""What brings each rule's incident about."""
