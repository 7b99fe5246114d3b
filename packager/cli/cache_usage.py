"""`package cache`: what the build cache holds, and emptying it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packager.common.cache import Cache, CacheUnavailable, open_cache
from packager.errors import CacheUnusable


@dataclass(frozen=True)
class KindUsage:
    """So many files of so many bytes."""

    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.files} files, {self.bytes / 1e6:.1f} MB"


@dataclass(frozen=True)
class CacheInfo:
    """Where the cache is, and what it holds of each kind: see `packager.common.cache`."""

    folder: str
    kinds: Mapping[str, KindUsage]

    def as_json(self) -> dict[str, object]:
        """The object that `package cache info --json` prints."""
        kinds = {name: {"files": one.files, "bytes": one.bytes} for name, one in self.kinds.items()}
        return {"folder": self.folder, **kinds}


def get_cache_info() -> CacheInfo:
    """What the user's cache holds. Raises `CacheUnusable`."""
    cache = _open_cache()
    return CacheInfo(str(cache.folder), {kind: KindUsage(*found) for kind, found in cache.usage().items()})


def clear_cache() -> int:
    """Empty the user's cache; returns the bytes that it held. Raises `CacheUnusable`."""
    return _open_cache().clear()


def _open_cache() -> Cache:
    try:
        return open_cache()
    except CacheUnavailable as why:
        raise CacheUnusable(str(why)) from None
