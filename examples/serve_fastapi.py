"""A language model behind HTTP, held to its manifest while it answers.

    weightguard manifest path/to/model -o model.weightguard.json
    python -m examples.serve_fastapi path/to/model model.weightguard.json

    POST /v1/completions {"prompt": "...", "max_tokens": 32}
    GET  /healthz  /readyz  /metrics  /weightguard/status

The weights are hashed as they are read. From then on a thread checks them at 250 MB/s, and each
forward pass what that did not reach of 8 MiB. Damage is repaired, from residues or from the
checkpoint; while it cannot be, /readyz says so and completions are refused with 503 instead of
being wrong. Damaged weights, or a manifest that is none of theirs, are not served: exit status 2.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from transformers import AutoTokenizer

from weightguard import IntegrityError, WeightguardError
from weightguard_integrations.serving import GuardRoutes, sound_answer
from weightguard_integrations.torch import TorchGuard, guard, load_verified_model

RETRY_AFTER = "5"
"""Seconds after which a refused client may ask again."""


class Prompt(BaseModel):
    prompt: str = Field(min_length=1, max_length=8192)
    max_tokens: int = Field(32, ge=1, le=256)


class Engine:
    """One model, and one generation at a time."""

    def __init__(self, folder: Path, manifest: Path, golden: Path | None):
        self.model = load_verified_model(folder, manifest)
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._busy = threading.Lock()
        self.guard: TorchGuard = guard(
            self.model,
            manifest,
            golden=golden,
            on_incident=["log", "metrics", "repair", "quarantine", "raise"],
        )

    def complete(self, prompt: str, max_tokens: int) -> str:
        """Return the greedy completion; raises IntegrityError while damage is open."""
        with self._busy:
            return sound_answer(self.guard, lambda: self._generate(prompt, max_tokens))

    @torch.inference_mode()
    def _generate(self, prompt: str, max_tokens: int) -> str:
        inputs = self._tokenizer(prompt, return_tensors="pt")
        tokens = self.model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        return self._tokenizer.decode(tokens[0, inputs.input_ids.shape[1] :])


def create_app(engine: Engine) -> FastAPI:
    @asynccontextmanager
    async def guarded(_app: FastAPI) -> AsyncIterator[None]:
        with engine.guard:
            yield

    app = FastAPI(title="Guarded completions", lifespan=guarded)
    app.add_middleware(GuardRoutes, guard=engine.guard)

    # not async: it runs in a worker thread, so that probes are answered meanwhile
    @app.post("/v1/completions")
    def complete(asked: Prompt) -> dict[str, str]:
        return {"text": engine.complete(asked.prompt, asked.max_tokens)}

    @app.exception_handler(IntegrityError)
    def refuse(_request: Request, error: IntegrityError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503, headers={"Retry-After": RETRY_AFTER})

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a Hugging Face folder of a causal model")
    parser.add_argument("manifest", type=Path, help="its manifest")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    told = parser.parse_args()
    try:
        engine = Engine(told.folder, told.manifest, golden=told.folder)
    except WeightguardError as error:
        parser.exit(2, f"not served: {error}\n")
    uvicorn.run(create_app(engine), host=told.host, port=told.port)


if __name__ == "__main__":
    main()
