"""What a person sees: progress and tables on stderr, results on stdout.

On a terminal the stages appear with a spinner and their times; elsewhere, and with NO_COLOR, each
finished stage is one plain line. rich is imported where something is shown with it, and nowhere else.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from packager.common.progress import Event, Listener, StageCached, StageFinished, StageProgressed, StageStarted

_PROGRESS_INTERVAL_SECONDS = 10  # between two plain lines on how far something has come


def is_terminal() -> bool:
    """Whether stderr is a terminal that may show colour."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


@contextmanager
def show_progress(quiet: bool) -> Iterator[Listener]:
    """A listener for progress: a live display on a terminal, plain lines elsewhere, nothing when quiet.

    It writes to stderr as it is now: what torch's exporters write there meanwhile is sent elsewhere.
    """
    if quiet:
        yield lambda event: None
    elif is_terminal():
        with _show_live_progress() as listener:
            yield listener
    else:
        yield _make_plain_listener()


def _make_plain_listener() -> Listener:
    last, stream = time.monotonic(), sys.stderr

    def listen(event: Event) -> None:
        nonlocal last
        if not isinstance(event, StageProgressed):
            _print_event(event, stream)
        elif time.monotonic() - last >= _PROGRESS_INTERVAL_SECONDS:
            last = time.monotonic()
            print(f"{event.stage:<12} {_format_transferred(event)}", file=stream, flush=True)

    return listen


def _print_event(event: Event, stream: TextIO) -> None:
    if isinstance(event, StageFinished):
        print(f"{event.stage:<12} {event.seconds:6.1f} s", file=stream, flush=True)
    elif isinstance(event, StageCached):
        print(f"{event.stage:<12} cached", file=stream, flush=True)
    elif not isinstance(event, (StageStarted, StageProgressed)):
        print(f"note: {event.message}", file=stream, flush=True)


def _format_transferred(event: StageProgressed) -> str:
    """`12.0 of 48.0 MB`, or as many as there are."""
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
            elif isinstance(event, StageFinished):
                console.print(f"[green]✓[/] {event.stage:<12} [dim]{event.seconds:6.1f} s[/]")
            elif isinstance(event, StageCached):
                console.print(f"[green]✓[/] {event.stage:<12} [dim]cached[/]")
            else:
                console.print(f"[yellow]•[/] {escape(event.message)}")

        yield listen


def escape_unprintable(text: str) -> str:
    """A text of somebody else's, in which nothing speaks to the terminal."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def print_key_values(rows: Mapping[str, str]) -> None:
    """Two columns on stdout: what, and what of it."""
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table with a header on stdout, every column as wide as it needs."""
    cells = [[str(one) for one in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        print("  ".join(f"{one:<{width}}" for one, width in zip(row, widths, strict=True)).rstrip())
