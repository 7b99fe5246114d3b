"""Run the service with uvicorn: sockets, signals, and a shutdown that lets what runs finish.

A signal first makes the readiness fail, so that a load balancer sends nothing new, and the server goes on for a while.
Then it closes its sockets, finishes the requests that it has, and ends with status 0. A second signal skips the wait.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from functools import partial
from types import FrameType
from typing import cast

import uvicorn

from packager.errors import AddressUnusable
from packager.serving.asgi import App
from packager.serving.http_protocol import HttpProtocol

_BACKLOG = 2048


class Server(uvicorn.Server):
    """A server for one app; `drain_seconds` is the time between the end of its readiness and that of its sockets."""

    def __init__(self, app: App, *, drain_seconds: float = 0.0, shutdown_seconds: float = 30.0) -> None:
        config = uvicorn.Config(
            app,
            http=cast("type[asyncio.Protocol]", partial(HttpProtocol, app)),
            loop="auto",  # uvloop, except on Windows
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            proxy_headers=False,
            timeout_graceful_shutdown=int(shutdown_seconds),
        )
        super().__init__(config)
        self._app = app
        self._drain_seconds = drain_seconds
        self._exit_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (of uvicorn)
        """Stop being ready, and exit after the time for draining; at once for Ctrl-C or a second signal."""
        if self._exit_at is None and sig != signal.SIGINT:
            self._exit_at = time.monotonic() + self._drain_seconds
        else:
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True
        self._app.service.is_ready = False

    async def on_tick(self, counter: int) -> bool:
        """Return whether to exit; uvicorn asks ten times a second."""
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Return a socket that listens on an address; port 0 takes any that is free. Raises `AddressUnusable`.

    With `reuse_port`, several processes may listen on one port, and the kernel divides the connections among them.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise AddressUnusable(host, port, str(error.strerror or error)) from None
    return listener
