"""Serve bundles over HTTP: `package serve`."""

from __future__ import annotations

import ipaddress
import logging
import sys
from pathlib import Path

import click

from packager.cli import console
from packager.cli.options import PATH, public_key_option, trust_program_option
from packager.errors import Usage

_MIB = 1 << 20


@click.command()
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=PATH)
@click.option("--host", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, metavar="N", type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option("--reuse-port", is_flag=True, help="Share the port with other processes of this command.")
@click.option(
    "--max-batch", metavar="N", type=click.IntRange(min=1), help="The largest batch. [default: the bundle's limit]"
)
@click.option(
    "--batch-delay",
    metavar="MS",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0, max=10_000),
    help="Let a request wait for others to join it.",
)
@click.option(
    "--instances",
    metavar="N",
    type=click.IntRange(1, 1024),
    help="Runs of a model at the same time. [default: the cores, up to 8]",
)
@click.option(
    "--threads", metavar="N", type=click.IntRange(min=1), help="Threads for one run. [default: cores / instances]"
)
@click.option(
    "--queue",
    metavar="N",
    default=256,
    show_default=True,
    type=click.IntRange(min=1),
    help="Requests that may wait for a model.",
)
@click.option(
    "--time-limit",
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Answer a request with an error after this time.",
)
@click.option(
    "--request-limit",
    metavar="MIB",
    default=64.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="The largest body of a request.",
)
@click.option(
    "--drain",
    metavar="SECONDS",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Go on for this time after SIGTERM, no longer ready.",
)
@click.option(
    "--model-control/--no-model-control",
    default=None,
    help="Let clients load and unload models. [default: only on a loopback address]",
)
@click.option(
    "--shared-memory", is_flag=True, help="Let clients name shared memory of this machine, any of this user's."
)
@click.option("--access-log", is_flag=True, help="Log every request, as a line of JSON on stderr.")
@click.option("--fingerprint", "fingerprints", metavar="h1:…", multiple=True, help="Of each bundle, in their order.")
@public_key_option
@trust_program_option
def serve(
    bundles: tuple[Path, ...],
    host: str,
    port: int,
    reuse_port: bool,
    max_batch: int | None,
    batch_delay: float,
    instances: int | None,
    threads: int | None,
    queue: int,
    time_limit: float,
    request_limit: float,
    drain: float,
    model_control: bool | None,
    shared_memory: bool,
    access_log: bool,
    fingerprints: tuple[str, ...],
    public_key: Path | None,
    trust_program: bool,
) -> None:
    """Serve bundles, folders or .zip files, over HTTP with the Open Inference Protocol v2.

    A model's name is its bundle's name. Several versions of a name may be served; the highest one answers requests that
    name none. SIGTERM and Ctrl-C end the server after the requests that it has.
    """
    if fingerprints and len(fingerprints) != len(bundles):
        raise Usage(f"{len(fingerprints)} fingerprints for {len(bundles)} bundles", "package serve")
    from packager.serving.extras import serve_extra

    with serve_extra("package serve"):
        from packager.serving.asgi import App
        from packager.serving.models import Models, Source
        from packager.serving.server import Server, bind
        from packager.serving.service import Service
        from packager.serving.settings import Settings
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    settings = Settings(
        max_request_bytes=int(request_limit * _MIB),
        max_buffered_bytes=max(512 * _MIB, int(8 * request_limit * _MIB)),
        max_queue=queue,
        time_limit=time_limit,
        batch_delay=batch_delay / 1000,
        max_batch=max_batch,
        instances=instances,
        threads=threads,
        model_control=_is_loopback(host) if model_control is None else model_control,
        shared_memory=shared_memory,
        access_log=access_log,
    )
    pins = fingerprints or (None,) * len(bundles)
    sources = [Source(path, pin, public_key, trust_program) for path, pin in zip(bundles, pins, strict=True)]
    app = App(Service(Models(sources, settings), settings))
    listener = bind(host, port, reuse_port=reuse_port)
    address = f"[{host}]" if ":" in host else host
    console.print_line(f"http://{address}:{listener.getsockname()[1]}")
    sys.stdout.flush()
    Server(app, drain_seconds=drain).run(sockets=[listener])


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
