"""Serve bundles over HTTP with the Open Inference Protocol v2: `package serve`, and `app` for services of your own.

A request becomes arrays (`protocol`), waits for its turn and is joined with others (`batching`), runs in a bundle
(`models`), and becomes an answer. `service` has the routes. `asgi` puts them into an ASGI app and `server` runs that
with uvicorn, where `http_protocol` takes the shortest way from a socket to the routes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from packager.common.lazy_import import import_attribute
from packager.serving.extras import serve_extra

if TYPE_CHECKING:
    from packager.serving.asgi import app
    from packager.serving.settings import Settings

__all__ = ["Settings", "app"]

_EXPORTS = {"Settings": "packager.serving.settings", "app": "packager.serving.asgi"}


def __getattr__(name: str) -> Any:
    with serve_extra(f"packager.serving.{name}"):
        return import_attribute(name, _EXPORTS, globals())
