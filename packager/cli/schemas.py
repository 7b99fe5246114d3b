"""The JSON Schemas of everything that others read or write: generated from the models, never by hand."""

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
    """The JSON Schema (draft 2020-12) of `name`."""
    generated = _MODELS[name].model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **generated,
        "title": _TITLES[name],
    }


def render_schema(name: SchemaName) -> str:
    """The schema as the text of schemas/NAME.schema.json."""
    return json.dumps(generate_schema(name), indent=2, ensure_ascii=False) + "\n"
