"""Generate the JSON Schemas of the files that other programs read or write, from the models that validate them."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel

from packager.bundle import records
from packager.project.manifest import Manifest

SchemaName = Literal["manifest", "config", "parity"]
_MODELS: dict[str, type[BaseModel]] = {
    "manifest": Manifest,
    "config": records.BundleConfig,
    "parity": records.ParityRecord,
}
_TITLES = {
    "manifest": "package.yaml, schema 1",
    "config": "config.json of a bundle, schema 1",
    "parity": "evidence/parity.json of a bundle, schema 1",
}


def generate_schema(name: SchemaName) -> dict[str, Any]:
    """Return a JSON Schema of draft 2020-12 (https://json-schema.org/draft/2020-12)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_MODELS[name].model_json_schema(by_alias=True),
        "title": _TITLES[name],
    }


def render_schema(name: SchemaName) -> str:
    """Return the text of schemas/NAME.schema.json."""
    return json.dumps(generate_schema(name), indent=2, ensure_ascii=False) + "\n"
