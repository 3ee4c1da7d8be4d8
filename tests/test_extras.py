"""Every extra that pyproject.toml offers installs, and what it names can be imported."""

from __future__ import annotations

import importlib
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

MODULES = {
    "torch": ("torch", "transformers", "accelerate"),
    "onnx": ("onnx", "onnxruntime"),
    "sign": ("model_signing", "OpenSSL"),
    "serve": ("prometheus_client", "starlette", "uvicorn"),
    "telemetry": ("opentelemetry",),
    "distributed": ("ray",),
    "remote": ("fsspec", "aiohttp"),
}
"""The modules that each extra exists for."""

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


def test_every_extra_is_listed_here() -> None:
    assert set(PROJECT["project"]["optional-dependencies"]) == set(MODULES)


@pytest.mark.parametrize("extra", MODULES)
def test_every_requirement_of_an_extra_has_its_module(extra: str) -> None:
    assert len(PROJECT["project"]["optional-dependencies"][extra]) == len(MODULES[extra])


@pytest.mark.parametrize("module", [module for extra in MODULES.values() for module in extra])
def test_what_an_extra_names_is_importable(module: str) -> None:
    assert importlib.import_module(module).__name__ == module


@pytest.mark.parametrize(
    ("distribution", "pinned"),
    [("torch", "2.13.0"), ("transformers", "5.23.0"), ("accelerate", "1.15.0")],
)
def test_what_runs_models_is_the_pinned_one(distribution: str, pinned: str) -> None:
    assert version(distribution).partition("+")[0] == pinned
