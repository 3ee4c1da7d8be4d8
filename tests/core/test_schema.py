"""The schemas that ship are those of the types, and what is written satisfies them."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import jsonschema
import msgspec
import pytest

from tests.checkpoints import random_tensor, write_safetensors
from weightguard import audit, fingerprint
from weightguard.manifest import encode
from weightguard.schema import DOCUMENTS, schema_text


@pytest.mark.parametrize("name", DOCUMENTS)
def test_shipped_schema_is_the_types(name: str) -> None:
    shipped = resources.files("weightguard") / "schemas" / f"{name}.schema.json"
    assert shipped.read_text() == schema_text(name)


def validate(name: str, document: object) -> None:
    schema = json.loads(schema_text(name))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)


def test_written_manifest_satisfies_its_schema(tmp_path: Path) -> None:
    tensors = {"w": random_tensor("BF16", (3, 64)), "empty": random_tensor("F32", (0, 5))}
    with fingerprint(write_safetensors(tmp_path / "m.safetensors", tensors)) as manifest:
        validate("manifest-v1", json.loads(encode(manifest.document)))


def test_written_report_satisfies_its_schema(tmp_path: Path) -> None:
    dtype, shape, data = random_tensor("F32", (64, 64))
    nan = bytes.fromhex("0000c07f")
    tensors = {"w": (dtype, shape, nan + data[4:])}
    report = audit(write_safetensors(tmp_path / "m.safetensors", tensors))
    assert [f.rule for f in report.findings] == ["WG201"]
    validate("report-v1", json.loads(msgspec.json.encode(report)))
