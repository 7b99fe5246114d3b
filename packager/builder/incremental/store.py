"""The outcomes of build stages in the cache, each found by everything that went into it.

An action is a stage with all its inputs as text: digests of files, fields of the manifest, versions of tools. Its id is
the SHA-256 of that text and says nothing about the outcome, whose files are named by their own SHA-256. The two are
kept apart, as in Go's build cache (cmd/go/internal/cache): if a changed input leads to the same outcome, the stages
after it need not run again.

`packager.common.cache` keeps the files; nothing heavy is imported here, because every build asks the cache first.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.common.cache import Cache, touch_entry
from packager.errors import escape_unprintable


@dataclass(frozen=True)
class CacheKey:
    """A stage, and everything that goes into it, by name."""

    stage: str
    inputs: Mapping[str, str]

    @property
    def id(self) -> str:
        """The SHA-256 of the stage and its inputs."""
        return hashlib.sha256(self.canonical_text().encode()).hexdigest()

    def canonical_text(self) -> str:
        """Return the text that is hashed: the stage and each input on a line of its own, sorted by name."""
        lines = [f"{name}: {json.dumps(self.inputs[name])}\n" for name in sorted(self.inputs)]
        return f"stage: {self.stage}\n" + "".join(lines)


@dataclass(frozen=True)
class CacheEntry:
    """The outcome of a stage: a record of small results, as JSON, and the SHA-256 of each file by its name."""

    record: Mapping[str, Any]
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The SHA-256 of the outcome: the input of each stage that reads it."""
        return hashlib.sha256(json.dumps([self.record, self.files]).encode()).hexdigest()


def look_up(cache: Cache, key: CacheKey, *, files: bool = True) -> CacheEntry | None:
    """Return the cached outcome of a stage; None if it is unknown or damaged, and a damaged one is deleted.

    With `files=False` its files are not checked and must not be used.
    """
    print_key_debug(key)
    path = cache.action_path(key.id)
    content = cache.read_record(path)
    if content is None:
        return None
    try:
        entry = CacheEntry(content["record"], content["files"])
        intact = content["inputs"] == dict(key.inputs)
        intact = intact and (not files or all(cache.has_object(sha256) for sha256 in entry.files.values()))
    except (KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        cache.delete(path)
        return None
    for used in (path, *(cache.object_path(sha256) for sha256 in entry.files.values())):
        touch_entry(used)
    return entry


def put(
    cache: Cache,
    key: CacheKey,
    entry: CacheEntry,
    files: Mapping[str, Path],
    digest: Callable[[Path], str] | None = None,
) -> None:
    """Cache the outcome of a stage; `files` are the paths of its files, and `digest` knows their digests if given.

    Raises OSError if it cannot be written.
    """
    print_key_debug(key)
    for name, sha256 in entry.files.items():
        cache.add_object(files[name], sha256, digest)
    content = {"stage": key.stage, "inputs": dict(key.inputs), "record": entry.record, "files": entry.files}
    cache.write_record(cache.action_path(key.id), content)


def print_key_debug(key: CacheKey) -> None:
    """Print the id and the text that it is the hash of to stderr, if PACKAGER_DEBUG_HASH is 1."""
    if os.environ.get("PACKAGER_DEBUG_HASH") == "1":
        lines = "".join(f"  {line}\n" for line in key.canonical_text().splitlines())
        print(escape_unprintable(f"HASH {key.id}\n{lines}", keep_line_breaks=True), end="", file=sys.stderr)
