"""Draw a report as an SVG picture, with a panel for latency and one for throughput. Standard library alone.

A series is a backend with a number of threads: colours tell backends apart, dashes threads. Both axes of values are
logarithmic, and batch sizes are evenly spaced. A thin line goes from the median up to the 90th percentile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from packager.benchmark.messages import BackendName
from packager.benchmark.report import BenchReport, Row

_WIDTH, _TOP, _BOTTOM, _PANEL_WIDTH = 900, 96, 340, 350
_LEGEND_COLUMN, _LEGEND_ROW = 200, 20
_LEFT = (70, 520)  # of each panel
_COLOURS = {"onnx": "#1f6fb4", "torchscript": "#d1495b", "torch-export": "#d1495b", "eager": "#6b7280"}
_DASHES = ("", "6 4", "2 3", "10 3 2 3")
_GRID, _TEXT = "#e5e7eb", "#374151"


@dataclass(frozen=True)
class Panel:
    """A panel: its left edge, its title, and the value of a row, perhaps with a second one above it."""

    left: int
    title: str
    value: Callable[[Row], float]
    upper: Callable[[Row], float | None] | None = None


def draw(report: BenchReport) -> str:
    """Return an SVG picture of a report, which has at least one row."""
    machine = report.machine
    title = f"{report.name} {report.version}"
    sizes = [f"{name}={size}" for name, size in report.rows[0].sizes.items() if name != report.batch_dim]
    rounds = f"{report.rounds} rounds in {report.seconds:.0f} s"
    facts = " · ".join([f"{machine.processor}, {machine.cores} cores", *sizes, rounds])
    height = _BOTTOM + 60 + _LEGEND_ROW * len({row.threads for row in report.rows})
    panels = (
        Panel(_LEFT[0], "milliseconds per call, median to 90th percentile", _get_p50, _get_p90),
        Panel(_LEFT[1], "rows per second", lambda row: row.summary.rows_per_second),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{_TEXT}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        _text(_LEFT[0], 28, title, size=17, weight="bold"),
        _text(_LEFT[0], 48, facts),
        *(part for panel in panels for part in _draw_panel(panel, report)),
        *_draw_legend(report),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _get_p50(row: Row) -> float:
    return row.summary.p50_ms


def _get_p90(row: Row) -> float | None:
    return row.summary.p90_ms


def _get_upper(panel: Panel, row: Row) -> float | None:
    return None if panel.upper is None else panel.upper(row)


def _draw_panel(panel: Panel, report: BenchReport) -> Iterator[str]:
    batches = list(dict.fromkeys(row.batch for row in report.rows))
    values = [value for row in report.rows for value in (panel.value(row), _get_upper(panel, row)) if value is not None]
    ticks = choose_ticks(min(values), max(values))
    low, high = math.log10(ticks[0]), math.log10(ticks[-1])

    def place_x(batch: int | None) -> float:
        return panel.left + _PANEL_WIDTH * (batches.index(batch) + 0.5) / len(batches)

    def place_y(value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (math.log10(value) - low) / (high - low)

    yield _text(panel.left, _TOP - 16, panel.title, weight="bold")
    for tick in ticks:
        y = place_y(tick)
        yield f'<path d="M{panel.left} {y:.1f}h{_PANEL_WIDTH}" stroke="{_GRID}"/>'
        yield _text(panel.left - 8, y + 4, f"{tick:,.10g}", anchor="end")
    for batch in batches:
        label = "" if batch is None else f"{report.batch_dim}={batch}"
        yield _text(place_x(batch), _BOTTOM + 20, label, anchor="middle")
    for backend, threads, rows in list_series(report):
        colour, dash = _style(report, backend, threads)
        points = [(place_x(row.batch), place_y(panel.value(row))) for row in rows]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        for row, (x, y) in zip(rows, points, strict=True):
            upper = _get_upper(panel, row)
            if upper is not None:
                yield f'<path d="M{x:.1f} {y:.1f}V{place_y(upper):.1f}" stroke="{colour}"/>'
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'


def _draw_legend(report: BenchReport) -> Iterator[str]:
    """Draw a row for each number of threads, with a column for each backend."""
    backends = list(dict.fromkeys(row.backend for row in report.rows))
    counts = list(dict.fromkeys(row.threads for row in report.rows))
    for backend, threads, _ in list_series(report):
        x = _LEFT[0] + _LEGEND_COLUMN * backends.index(backend)
        y = _BOTTOM + 46 + _LEGEND_ROW * counts.index(threads)
        colour, dash = _style(report, backend, threads)
        yield f'<path d="M{x} {y}h30" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        yield _text(x + 38, y + 4, f"{backend}, {threads} thread{'s' if threads != 1 else ''}")


def list_series(report: BenchReport) -> list[tuple[BackendName, int, list[Row]]]:
    """Return backend, threads and rows of every line, in the order of the table."""
    series: dict[tuple[BackendName, int], list[Row]] = {}
    for row in report.rows:
        series.setdefault((row.backend, row.threads), []).append(row)
    return [(*key, rows) for key, rows in series.items()]


def choose_ticks(low: float, high: float) -> list[float]:
    """Return values 1, 2 and 5 times powers of ten, from one that is at most `low` to one that is at least `high`.

    Only powers of ten if there would be more than eight.
    """
    steps: Sequence[float] = (1, 2, 5)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    first = max(index for index, tick in enumerate(ticks) if tick <= low)
    last = min(index for index, tick in enumerate(ticks) if tick >= high and index > first)
    ticks = ticks[first : last + 1]
    return ticks if len(ticks) <= 8 else [10.0**exponent for exponent in exponents]


def _style(report: BenchReport, backend: str, threads: int) -> tuple[str, str]:
    numbers = sorted({row.threads for row in report.rows}, reverse=True)  # most threads: a solid line
    return _COLOURS[backend], _DASHES[numbers.index(threads) % len(_DASHES)]


def _text(x: float, y: float, content: str, *, anchor: str = "start", size: int = 12, weight: str = "normal") -> str:
    attributes = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(content)}</text>'
