"""The PyTorch adapter under the conformance suite: plain, compiled, and with awkward tensors."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import nn

from tests.conformance.suite import AdapterConformance
from tests.integrations.torch.tiny_models import llama
from weightguard.guard import Adapter
from weightguard_integrations.torch.live import TorchAdapter


class TorchSubject:
    """A model and one input; its output is the bytes of the logits."""

    def __init__(self, model: nn.Module, inputs: torch.Tensor, *, distant: bool = False):
        self.model, self.inputs = model, inputs
        self.torch_adapter = TorchAdapter(model, distant=distant)
        self.adapter: Adapter = self.torch_adapter

    def run(self) -> bytes:
        with torch.inference_mode():
            output = self.model(self.inputs)
        logits = getattr(output, "logits", output)
        return logits.contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    def poke(self, name: str, start: int, data: bytes) -> None:
        """Through the address alone, as a faulty memory would; strides are followed by hand."""
        tensor = self.model.get_parameter(name) if self._is_parameter(name) else (
            self.model.get_buffer(name)
        )  # fmt: skip
        if tensor.is_contiguous():
            ctypes.memmove(tensor.data_ptr() + start, data, len(data))
            return
        size = tensor.element_size()
        for number, byte in enumerate(data, start):
            element, within = divmod(number, size)
            offset = 0
            for length, stride in zip(
                reversed(tensor.shape), reversed(tensor.stride()), strict=True
            ):
                element, index = divmod(element, length)
                offset += index * stride
            ctypes.memmove(tensor.data_ptr() + offset * size + within, bytes([byte]), 1)

    def rewrite(self, name: str, data: bytes) -> None:
        tensor = self.model.get_parameter(name) if self._is_parameter(name) else (
            self.model.get_buffer(name)
        )  # fmt: skip
        if not data:
            return
        new = torch.frombuffer(bytearray(data), dtype=tensor.dtype).reshape(tensor.shape)
        with torch.no_grad():
            tensor.copy_(new)

    def _is_parameter(self, name: str) -> bool:
        return name in dict(self.model.named_parameters(remove_duplicate=False))


class Awkward(nn.Module):
    """Transposed, tied, scalar and empty tensors, a long row, and buffers of several dtypes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.big = nn.Linear(1200, 700, bias=True)
        self.tied = nn.Linear(1200, 700, bias=False)
        self.tied.weight = self.big.weight
        self.turned = nn.Parameter(torch.randn(90, 700).t())
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("counts", torch.arange(70, dtype=torch.int64))
        self.register_buffer("mask", torch.ones(65, dtype=torch.bool), persistent=False)
        self.register_buffer("halves", torch.randn(64, 65).to(torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.big(x) + self.tied(x)
        out = hidden @ self.turned * self.scale
        extra = self.counts.double().sum() + self.halves.float().sum() + self.mask.sum()
        return torch.cat([out.flatten().double(), extra.reshape(1)])


class TestPlainLlama(AdapterConformance):
    @pytest.fixture
    def subject(self) -> TorchSubject:
        return TorchSubject(llama().eval(), torch.arange(12)[None])


class TestAwkward(AdapterConformance):
    @pytest.fixture
    def subject(self) -> TorchSubject:
        return TorchSubject(Awkward().eval(), torch.randn(2, 1200, dtype=torch.float32))


class TestDistantLlama(AdapterConformance):
    """As in a GPU's memory: row sums where the weights lie, judged a forward pass later."""

    @pytest.fixture
    def subject(self) -> TorchSubject:
        return TorchSubject(llama().eval(), torch.arange(12)[None], distant=True)


class TestDistantAwkward(AdapterConformance):
    @pytest.fixture
    def subject(self) -> TorchSubject:
        return TorchSubject(Awkward().eval(), torch.randn(2, 1200), distant=True)
