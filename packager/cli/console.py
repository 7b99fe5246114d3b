"""Show progress on stderr and print results on stdout for a person to read.

A terminal shows each stage with a spinner and its time. Elsewhere, and with NO_COLOR, each finished stage is one plain
line. rich is imported only if something is shown with it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from packager.common.progress import (
    Event,
    Listener,
    Note,
    StageCached,
    StageFinished,
    StageProgressed,
    StageStarted,
    StageStep,
    ignore_event,
)
from packager.errors import escape_unprintable

_PROGRESS_INTERVAL_SECONDS = 10  # between two plain lines about the same transfer or search


def is_terminal() -> bool:
    """Return whether stderr is a terminal that may show colour."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


@contextmanager
def show_progress(quiet: bool) -> Iterator[Listener]:
    """Yield a listener that shows progress: live on a terminal, as plain lines elsewhere, not at all if `quiet`.

    It writes to today's stderr, even while stderr is redirected to keep the output of torch's exporters away.
    """
    if quiet:
        yield ignore_event
    elif is_terminal():
        with _show_live_progress() as listener:
            yield listener
    else:
        yield _make_plain_listener()


def _make_plain_listener() -> Listener:
    last_time, stream = time.monotonic(), sys.stderr

    def listen(event: Event) -> None:
        nonlocal last_time
        if not isinstance(event, (StageProgressed, StageStep)):
            _print_event(event, stream)
        elif time.monotonic() - last_time >= _PROGRESS_INTERVAL_SECONDS:
            last_time = time.monotonic()
            text = _format_step(event) if isinstance(event, StageStep) else _format_transferred(event)
            print_line(f"{event.stage:<12} {text}", stream)

    return listen


def _print_event(event: Event, stream: TextIO) -> None:
    if isinstance(event, StageFinished):
        print(f"{event.stage:<12} {event.seconds:6.1f} s", file=stream, flush=True)
    elif isinstance(event, StageCached):
        print(f"{event.stage:<12} cached", file=stream, flush=True)
    elif isinstance(event, Note):
        print_line(f"note: {event.message}", stream)


def _format_step(event: StageStep) -> str:
    """Return `step 5 of 7: comparison 1`."""
    return f"step {event.number} of {event.steps}: {event.description}"


def _format_transferred(event: StageProgressed) -> str:
    """Return `12.0 of 48.0 MB`, or `12.0 MB` if the total is unknown."""
    return f"{event.done / 1e6:.1f} {f'of {event.total / 1e6:.1f} ' if event.total is not None else ''}MB"


@contextmanager
def _show_live_progress() -> Iterator[Listener]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    console = Console(file=sys.stderr, highlight=False)
    with console.status("") as status:

        def listen(event: Event) -> None:
            if isinstance(event, StageStarted):
                status.update(f"{event.stage} …")
            elif isinstance(event, StageProgressed):
                line = Table.grid(padding=(0, 1))
                bar = ProgressBar(total=event.total, completed=event.done, width=30)
                line.add_row(event.stage, bar, _format_transferred(event))
                status.update(line)
            elif isinstance(event, StageStep):
                status.update(escape(escape_unprintable(f"{event.stage} … {_format_step(event)}")))
            elif isinstance(event, StageFinished):
                console.print(f"[green]✓[/] {event.stage:<12} [dim]{event.seconds:6.1f} s[/]")
            elif isinstance(event, StageCached):
                console.print(f"[green]✓[/] {event.stage:<12} [dim]cached[/]")
            else:
                console.print(f"[yellow]•[/] {escape(escape_unprintable(event.message))}")

        yield listen


def print_line(text: str, stream: TextIO | None = None) -> None:
    """Print a text, by default to stdout, without the control characters that it may have from a file."""
    print(escape_unprintable(text, keep_line_breaks=True), file=stream, flush=stream is not None)


def format_about(about: Mapping[str, Any]) -> dict[str, str]:
    """Return what is known about a checkpoint's training, by title and without control characters.

    `about` is the object that `--json` prints.
    """
    from packager.checkpoint.metadata import About

    return {title: escape_unprintable(text) for title, text in About(**about).rows().items()}


def print_key_values(rows: Mapping[str, str]) -> None:
    """Print names and their values to stdout, in two columns; a value may have several lines."""
    rows = {escape_unprintable(name): escape_unprintable(value, keep_line_breaks=True) for name, value in rows.items()}
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        indented = value.replace("\n", "\n" + " " * (width + 2))
        print(f"{name:<{width}}  {indented}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table with a header to stdout; each column is as wide as its longest cell."""
    lines = [[escape_unprintable(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def print_signature(inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of tensors, each with `name`, `dtype` and `shape`; an unknown size is shown as `?`."""
    rows = []
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            shape = ", ".join("?" if dim is None else str(dim) for dim in tensor["shape"])
            rows.append((kind, tensor["name"], tensor["dtype"], f"[{shape}]"))
    print_table(("", "name", "dtype", "shape"), rows)
