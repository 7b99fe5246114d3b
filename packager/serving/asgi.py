"""The service as an ASGI app, for any ASGI server and for mounting in a service of your own.

Bodies are read within the limits of the settings; `packager.serving.http_protocol` does the same for `package serve`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from packager.runtime.loader import Bundle
from packager.serving.body_budget import BodyBudget
from packager.serving.messages import Rejected, Request, Response, error_response
from packager.serving.models import Models, Source
from packager.serving.service import Service
from packager.serving.settings import Settings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Disconnected(Exception):
    """The client has gone before its request was complete."""


class App:
    """An ASGI app that serves models; `service.is_ready = False` lets its readiness fail."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.budget = BodyBudget(service.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or take part in the lifespan of the server."""
        if scope["type"] == "http":
            await self._handle_http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _handle_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _handle_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, root = scope["path"], scope.get("root_path", "")
        if root and path.startswith(root):  # where the app is mounted below a path
            path = path[len(root) :]
        headers = dict(scope["headers"])
        buffered = 0
        try:
            self.budget.check_length(headers.get(b"content-length"))
            body = await self._read_body(receive)
            buffered = len(body)
            response = await self._handle(Request(scope["method"], path, headers, body))
        except Rejected as error:
            response = error_response(error)
        except _Disconnected:
            return
        finally:
            self.budget.release(buffered)
        await _send_response(response, send)

    async def _handle(self, request: Request) -> Response:
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def respond(response: Response) -> None:
            if not future.done():  # cancelled: the server has given the client up
                future.set_result(response)

        self.service.handle(request, respond)
        return await future

    async def _read_body(self, receive: Receive) -> bytes:
        """Read the body of a request. Raises `Rejected`: 413, 408 or 503; and `_Disconnected`."""
        deadline = None
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                if deadline is None:
                    deadline = asyncio.get_running_loop().time() + self.service.settings.time_limit
                    message = await receive()
                else:
                    remaining = deadline - asyncio.get_running_loop().time()
                    message = await asyncio.wait_for(receive(), max(remaining, 0.001))
                if message["type"] == "http.disconnect":
                    raise _Disconnected
                part = message.get("body", b"")
                size += self.budget.reserve(len(part), size)
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
        except asyncio.TimeoutError:
            self.budget.release(size)
            raise Rejected(408, "the body of the request did not arrive in time", _CLOSE) from None
        except (Rejected, _Disconnected):
            self.budget.release(size)
            raise


_CLOSE = ((b"connection", b"close"),)


async def _send_response(response: Response, send: Send) -> None:
    length = sum([len(part) for part in response.parts])
    headers = [*response.headers, (b"content-length", b"%d" % length)]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    body = b"".join(response.parts) if len(response.parts) != 1 else bytes(response.parts[0])
    await send({"type": "http.response.body", "body": body})


async def _handle_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def app(*bundles: str | Path | Bundle, settings: Settings | None = None) -> App:
    """Return an ASGI app that serves bundles with the Open Inference Protocol.

    Each of `bundles` is the path of a bundle, which is loaded at once, or a bundle that `packager.load` returned. A
    model's name is its bundle's name; several versions of one name may be served.
    """
    settings = settings or Settings()
    sources = [Source(Path(bundle)) for bundle in bundles if not isinstance(bundle, Bundle)]
    loaded = [bundle for bundle in bundles if isinstance(bundle, Bundle)]
    return App(Service(Models(sources, settings, loaded), settings))
