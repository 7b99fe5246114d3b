"""Measure how fast a bundle predicts: `package bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packager.cli import console, stdio
from packager.cli.options import PATH, fingerprint_option, json_option, public_key_option, trust_program_option
from packager.errors import OutputRefused

if TYPE_CHECKING:
    from packager.benchmark.report import BenchReport, Row
    from packager.benchmark.statistics import Comparison


def _parse_counts(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the positive integers of a text such as `1,8`; none without a text."""
    return tuple(_parse_count(part, parameter, context) for part in value.split(",")) if value is not None else ()


def _parse_sizes(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    """Return the sizes by name of texts such as `sequence=128`."""
    sizes = {}
    for value in values:
        name, _, size = value.rpartition("=")
        if not name:
            raise click.BadParameter(f"{value!r} is not NAME=SIZE", context, parameter)
        sizes[name] = _parse_count(size, parameter, context)
    return sizes


def _parse_count(text: str, parameter: click.Parameter, context: click.Context) -> int:
    if not text.isascii() or not text.strip().isdigit() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is not a positive integer", context, parameter)
    return int(text)


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--batch", "batches", metavar="N,N", callback=_parse_counts, help="Batch sizes. [default: 1,8,32, within limits]"
)
@click.option("--threads", metavar="N,N", callback=_parse_counts, help="Numbers of threads. [default: 1 and all cores]")
@click.option(
    "--dim",
    "sizes",
    metavar="NAME=SIZE",
    multiple=True,
    callback=_parse_sizes,
    help="The size of a dim other than the batch. [default: 128 within its limits]",
)
@click.option("--input", "source", metavar="X.npz", type=PATH, help="Take values and sizes from this file, by name.")
@click.option(
    "--seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    help="How long to measure.",
)
@click.option("--manifest", metavar="MANIFEST", type=PATH, help="Measure the eager module of this manifest too.")
@click.option("--plot", metavar="FILE.svg", type=PATH, help="Draw the figures.")
@fingerprint_option
@public_key_option
@trust_program_option
@json_option
def bench(
    bundle: Path,
    batches: tuple[int, ...],
    threads: tuple[int, ...],
    sizes: dict[str, int],
    source: Path | None,
    seconds: float,
    manifest: Path | None,
    plot: Path | None,
    fingerprint: str | None,
    public_key: Path | None,
    trust_program: bool,
    as_json: bool,
) -> None:
    """Measure how fast BUNDLE, a folder or .zip, predicts on this machine.

    ONNX is compared with the fallback, which runs if the bundle is pinned or trusted, and with the eager module.
    """
    from packager.benchmark.run import bench as run

    if plot is not None and (plot.is_dir() or not plot.parent.is_dir()):
        why = "it is a folder" if plot.is_dir() else "there is no such folder"
        raise OutputRefused(str(plot), why, "choose another file with --plot", what="the plot")
    with stdio.redirect_stdout_to_stderr(), console.show_progress(quiet=as_json) as listener:
        report = run(
            bundle,
            fingerprint=fingerprint,
            public_key=public_key,
            trust_program=trust_program,
            manifest=manifest,
            batches=batches,
            threads=threads,
            sizes=sizes,
            inputs=source,
            seconds=seconds,
            listener=listener,
        )
    if plot is not None:
        from packager.benchmark import plot as picture
        from packager.benchmark.report import save_text

        save_text(plot, picture.draw(report))
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        _print_report(report)


def _print_report(report: BenchReport) -> None:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    rounds = f"{report.rounds} round{'s' if report.rounds != 1 else ''} in {report.seconds:.1f} s"
    console.print_key_values(
        {
            "bundle": f"{report.name} {report.version}, {report.fingerprint}",
            "machine": f"{machine.processor}, {machine.cores} usable cores, {machine.memory_bytes / 1e9:.0f} GB",
            "system": f"{machine.system}, Python {machine.python}",
            "versions": versions,
            "inputs": f"values of {', '.join(report.input_sources)}",
            "measured": rounds,
        }
    )
    print()
    backends: list[tuple[str, ...]] = [
        (
            name,
            f"{loaded.load_seconds:.2f}",
            f"{loaded.resident_bytes / 1e6:.0f}" if loaded.resident_bytes else "unknown",
        )
        for name, loaded in report.backends.items()
    ]
    console.print_table(("backend", "load, s", "memory, MB"), backends)
    print()
    header = ("backend", "threads", "sizes", "p50, ms", "p90, ms", "p99, ms", "rows/s", "onnx against it")
    console.print_table(header, [_format_row(row) for row in report.rows])
    for name, reason in (*report.not_measured.items(), *report.skipped.items()):
        console.print_line(f"not measured: {name}: {reason}")
    for note in report.notes:
        console.print_line(f"note: {note}")


def _format_row(row: Row) -> tuple[str, ...]:
    summary = row.summary
    times = (_format_ms(time) for time in (summary.p50_ms, summary.p90_ms, summary.p99_ms))
    sizes = " ".join(f"{name}={size}" for name, size in row.sizes.items())
    compared = "" if row.compared is None else _format_comparison(row.compared)
    return row.backend, str(row.threads), sizes, *times, _format_rate(summary.rows_per_second), compared


def _format_ms(time: float | None) -> str:
    return "-" if time is None else f"{time:.4g}"


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _format_comparison(comparison: Comparison) -> str:
    """Return `2.3 × as fast (2.1 to 2.4)`, or that no difference was found."""
    if comparison.low is None:
        return f"{comparison.ratio:.3g} × as fast, in too few rounds to say"
    interval = f"({comparison.low:.3g} to {comparison.high:.3g})"
    if comparison.verdict == "undecided":
        return f"no clear difference {interval}"
    return f"{comparison.ratio:.3g} × as fast {interval}"
