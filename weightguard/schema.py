"""JSON Schemas of what weightguard writes, derived from the types that read and write it."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from weightguard.finding import Report
from weightguard.manifest import ManifestDocument

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOCUMENTS: dict[str, type[msgspec.Struct]] = {
    "manifest-v1": ManifestDocument,
    "report-v1": Report,
}


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``manifest-v1`` or ``report-v1``."""
    return {"$schema": DIALECT, **msgspec.json.schema(DOCUMENTS[name])}


def schema_text(name: str) -> str:
    """Return the schema as the package ships it in ``schemas/NAME.schema.json``."""
    return json.dumps(json_schema(name), indent=2, sort_keys=True) + "\n"
