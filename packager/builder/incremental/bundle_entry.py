"""Hold the cached entry of a bundle against the inputs of the build that is about to use it.

The entry says which files the bundle consists of. What the inputs decide alone is compared with them rather than
believed: the assets, file by file, and the digests of manifest and checkpoint in config.json. What config.json and the
files decide is computed from them: fingerprint, verdicts and lockfile. The artifacts themselves and the evidence cannot
be computed without a build; `package build --locked` holds the artifacts against the digests in package.lock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.builder.incremental.store import CacheEntry, CacheKey
from packager.bundle import layout
from packager.bundle.fingerprint import compute_fingerprint, format_sums

_MODELS = frozenset({layout.ONNX, layout.ONNX_DATA, layout.TORCHSCRIPT, layout.EXPORTED_PROGRAM})
_RECORDS = frozenset({layout.CONFIG, layout.README, layout.GOLDEN, layout.PARITY, layout.BUILD, *layout.DOCUMENTS})
_ASSET_INPUT, _ASSETS_FOLDER = "asset:", f"{layout.ASSETS}/"


@dataclass(frozen=True)
class CheckedBundle:
    """A bundle from the cache that agrees with its inputs: its config.json and its fingerprint."""

    config: Mapping[str, Any]
    fingerprint: str

    @property
    def parity(self) -> Mapping[str, str]:
        """The verdict of each backend."""
        verdicts: Mapping[str, str] = self.config["parity"]
        return verdicts


def check_bundle_entry(key: CacheKey, entry: CacheEntry, config_path: Path) -> CheckedBundle | None:
    """Return what a cached bundle is; None if it cannot be the bundle of these inputs.

    `config_path` is its config.json, in the cache or in place, which is hashed here.
    """
    try:
        content = config_path.read_bytes()
        if hashlib.sha256(content).hexdigest() != entry.files[layout.CONFIG]:
            return None
        config = json.loads(content)
        if not (_has_given_assets(key, entry) and _has_given_sources(key, entry, config)):
            return None
        return CheckedBundle(config, compute_fingerprint(format_sums(entry.files)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # it is incomplete, or not what a build writes


def _has_given_assets(key: CacheKey, entry: CacheEntry) -> bool:
    given = {name: sha256 for name, sha256 in key.inputs.items() if name.startswith(_ASSET_INPUT)}
    shipped = {path: sha256 for path, sha256 in entry.files.items() if path.startswith(_ASSETS_FOLDER)}
    return shipped == {_ASSETS_FOLDER + name.removeprefix(_ASSET_INPUT): sha256 for name, sha256 in given.items()}


def _has_given_sources(key: CacheKey, entry: CacheEntry, config: Mapping[str, Any]) -> bool:
    """Return whether config.json names these inputs, and the bundle has the artifacts of config.json and no other."""
    source = config["source"]
    artifacts = {each["path"]: each["sha256"] for each in config["artifacts"].values() if each is not None}
    models = {
        path: sha256
        for path, sha256 in entry.files.items()
        if path not in _RECORDS and not path.startswith(_ASSETS_FOLDER)
    }
    if layout.ONNX in artifacts:
        models.pop(layout.ONNX_DATA, None)  # named by model.onnx itself
    return (
        models == artifacts
        and set(artifacts) <= _MODELS
        and set(entry.files) >= _RECORDS
        and source["manifest_sha256"] == key.inputs["manifest"]
        and source["checkpoint_sha256"] == key.inputs["checkpoint"]
    )
