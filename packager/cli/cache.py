"""Show or empty the build cache: `package cache info` and `package cache clean`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from packager.cli import console
from packager.cli.options import json_option
from packager.errors import CacheUnusable

if TYPE_CHECKING:
    from packager.common.cache import Cache


@click.group()
def cache() -> None:
    """Show or empty the build cache."""


@cache.command()
@json_option
def info(as_json: bool) -> None:
    """Show where the cache is and how large it is."""
    opened = _open_cache()
    usage, folder = opened.usage(), str(opened.folder)
    if as_json:
        kinds = {kind: {"files": files, "bytes": size} for kind, (files, size) in usage.items()}
        print(json.dumps({"folder": folder, **kinds}))
        return
    rows = {kind: f"{files} files, {size / 1e6:.1f} MB" for kind, (files, size) in usage.items()}
    console.print_key_values({"folder": folder, **rows})


@cache.command()
@json_option
def clean(as_json: bool) -> None:
    """Delete everything in the cache."""
    freed = _open_cache().clear()
    print(json.dumps({"freed_bytes": freed}) if as_json else f"{freed} bytes freed")


def _open_cache() -> Cache:
    from packager.common.cache import CacheUnavailable, open_cache

    try:
        return open_cache()
    except CacheUnavailable as error:
        raise CacheUnusable(str(error)) from None
