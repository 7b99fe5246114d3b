"""Read config.json of a bundle that somebody sent: strict JSON, then its schema, then its references."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from packager.bundle import layout
from packager.bundle.files import BundleFiles
from packager.common.json_schema import find_schema_problem
from packager.common.paths import data_folder
from packager.common.strict_json import parse_strict_json
from packager.errors import BundleSchemaUnknown, IntegrityFailed, NotABundle, escape_unprintable

MAX_CONFIG_BYTES = 1 << 20
"""Parsed, JSON takes up to thirty times its size."""

_DTYPES = frozenset({
    "bool", "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64",
})  # fmt: skip


def read_config(files: BundleFiles) -> dict[str, Any]:
    """Read and check config.json. Its digest must have been compared before, unless nobody asks for digests.

    Raises what `parse_config` raises, and `NotABundle` if it is not a valid config.json.
    """
    config = parse_config(files)
    if problem := find_config_problem(config):
        raise NotABundle(str(files.path), problem)
    return config


def parse_config(files: BundleFiles) -> dict[str, Any]:
    """Read config.json, and check nothing but its schema version.

    Raises `BundleSchemaUnknown` for a schema that this version does not know, `IntegrityFailed` if the file is too
    large, and `NotABundle` or `IntegrityFailed` if it is not JSON.
    """
    content = files.read(layout.CONFIG, MAX_CONFIG_BYTES)
    try:
        config = parse_strict_json(content)
    except (ValueError, RecursionError) as error:
        why = f"{layout.CONFIG} cannot be read: {escape_unprintable(str(error)[:200])}"
        kind = IntegrityFailed if layout.FINGERPRINT in files else NotABundle
        raise kind(str(files.path), why) from None
    schema = config.get("schema") if isinstance(config, dict) else None
    if schema != layout.SCHEMA_VERSION or isinstance(schema, bool):
        raise BundleSchemaUnknown(str(files.path), schema)
    return dict(config)


def find_config_problem(config: Mapping[str, Any]) -> str | None:
    """Return how config.json differs from its schema, or which of its references leads nowhere; None if it is valid."""
    problem = find_schema_problem(config, _load_schema()) or next(_iter_problems(config), None)
    return f"{layout.CONFIG} is malformed: {escape_unprintable(problem)}" if problem else None


def list_artifacts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List path and SHA-256 of every file of an artifact, as config.json has them."""
    artifacts = [artifact for artifact in config["artifacts"].values() if artifact is not None]
    onnx = config["artifacts"]["onnx"]
    if onnx is not None and onnx.get("data") is not None:
        artifacts.append(onnx["data"])
    return [(artifact["path"], artifact["sha256"]) for artifact in artifacts]


def _iter_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the schema cannot say: references that lead nowhere, and sizes that make no sense."""
    for kind in ("inputs", "outputs"):
        counts = Counter(tensor["name"] for tensor in config[kind])
        yield from (f"{kind}: {name!r} appears twice" for name, count in counts.items() if count > 1)
        for tensor in config[kind]:
            if tensor["dtype"] not in _DTYPES:
                yield f"{kind}: {tensor['name']!r} has the unknown dtype {tensor['dtype']!r}"
            if any(isinstance(dim, int) and dim < 0 for dim in tensor["shape"]):
                yield f"{kind}: {tensor['name']!r} has a negative size"
    for tensor in config["inputs"]:
        for dim in tensor["shape"]:
            if not isinstance(dim, int) and dim not in config["dims"]:
                yield f"inputs: {tensor['name']!r} has the dim {dim!r}, which dims does not define"
    for name, dim in config["dims"].items():
        if dim["min"] < 0 or (dim["max"] is not None and dim["max"] < dim["min"]):
            yield f"dims.{name} allows no size"
    yield from (f"artifacts: {path!r} is in a folder" for path, _ in list_artifacts(config) if "/" in path)


def _load_schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((data_folder("schemas") / "config.schema.json").read_bytes())
    return schema
