"""The example server and two routes more: tests damage its memory, and read its incidents.

    python -m tests.integrations.serving.injectable FOLDER MANIFEST [GOLDEN]

Serves on any free port of loopback. Nothing of this ships.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from examples.serve_fastapi import Engine, create_app


class Flips(BaseModel):
    """Elements of a parameter of 16 bits, and the bits of them that are turned over."""

    parameter: str
    elements: list[int]
    mask: int


def add_routes(app: FastAPI, engine: Engine) -> None:
    @app.post("/test/flip")
    def flip(flips: Flips) -> float:
        live = engine.model.get_parameter(flips.parameter)
        bits = live.detach().view(-1).view(torch.int16).numpy().view("u2")
        bits[flips.elements] ^= flips.mask
        return time.time()

    @app.get("/test/incidents")
    def incidents() -> list[dict[str, Any]]:
        return [
            {
                "code": i.code,
                "at": i.at,
                "number": i.number,
                "cause": i.cause,
                "tensor": i.tensor,
                "block": i.block,
            }
            for i in engine.guard.incidents
        ]

    @app.get("/test/parameters")
    def parameters() -> dict[str, int]:
        return {name: p.numel() for name, p in engine.model.named_parameters()}


def main(folder: str, manifest: str, golden: str | None = None) -> None:
    engine = Engine(Path(folder), Path(manifest), None if golden is None else Path(golden))
    app = create_app(engine)
    add_routes(app, engine)
    uvicorn.run(app, host="127.0.0.1", port=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
