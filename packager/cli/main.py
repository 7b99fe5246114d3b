"""The command `package`: arguments in, results on stdout, everything else on stderr, an exit status.

No policy lives here, and a command's world is imported only when the command runs. This is the one
place where an error becomes an exit status: 1 and 2 as the error's class says, 3 for a bug of ours.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from packager.cli import stdio
from packager.errors import PackagerError, Usage, render_error

_CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


@click.group(context_settings=_CONTEXT_SETTINGS)
@click.version_option(package_name="torch-packager", prog_name="package")
def cli() -> None:
    """One manifest and one PyTorch checkpoint in, one proven bundle out."""


@cli.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default="dist", show_default=True, type=click.Path(path_type=Path), help="Folder for bundles."
)
@click.option("--force", is_flag=True, help="Replace what is there even if it is not a bundle.")
@click.option("--archive", is_flag=True, help="Write DIR/NAME-VERSION.zip too.")
@click.option("--no-cache", is_flag=True, help="Build everything anew, and leave the cache alone, but for downloads.")
@click.option("--verify-cache", is_flag=True, help="Build everything anew, and fail where the cache held other bytes.")
@click.option(
    "--explain", is_flag=True, help="Say for every stage what changed since the last build, or that it was cached."
)
@click.option("--check", is_flag=True, help="Build twice, in another process and folder too, and fail on other bytes.")
@click.option("--lock", is_flag=True, help="Write package.lock: digests of all that went in and came out.")
@click.option("--locked", is_flag=True, help="Fail where the build differs from package.lock.")
@_json_option
def build(
    manifest: Path,
    output: Path,
    force: bool,
    archive: bool,
    no_cache: bool,
    verify_cache: bool,
    explain: bool,
    check: bool,
    lock: bool,
    locked: bool,
    as_json: bool,
) -> None:
    """Build the bundle of MANIFEST into DIR/NAME-VERSION and prove it."""
    from packager.builder.api import build as run
    from packager.cli import console
    from packager.common import process_memory

    _require_exclusive({"--no-cache": no_cache, "--verify-cache": verify_cache})
    _require_exclusive({"--lock": lock, "--locked": locked})

    process_memory.use_single_arena()
    # torch's threads and those of the ONNX side share the cores: one that spins while it waits takes
    # time from one that works (ResNet-50: 8.4 s instead of 10.5 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with _redirect_stdout_to_stderr(), console.show_progress(quiet=as_json) as listener:
        result = run(
            manifest,
            output,
            force=force,
            archive=archive,
            cache="off" if no_cache else "verify" if verify_cache else "use",
            lock="write" if lock else "require" if locked else "check",
            check=check,
            listener=listener,
        )
    for line in (result.explanation or ("the cache was left alone",)) if explain else ():
        print(f"explain: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps(result.as_json()))
        return
    rows = {**result.facts, "bundle": str(result.bundle)}
    if result.archive is not None:
        rows["archive"] = str(result.archive)
    console.print_key_values({**rows, "fingerprint": result.fingerprint})


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--fingerprint", metavar="h1:…", help="The fingerprint that the bundle must have.")
@click.option("--no-parity", is_flag=True, help="Do not replay the evidence.")
@click.option("--rebuild", metavar="MANIFEST", type=click.Path(path_type=Path), help="Build it again, and compare.")
@_json_option
def verify(bundle: Path, fingerprint: str | None, no_parity: bool, rebuild: Path | None, as_json: bool) -> None:
    """Check a BUNDLE, folder or .zip: integrity, structure, and parity replayed from its own evidence."""
    from packager.cli import console
    from packager.runtime.verify import verify as run

    report = run(bundle, fingerprint=fingerprint, parity=not no_parity)
    if rebuild is not None:
        from packager.builder.rebuild import rebuild_and_compare

        report = report.with_rebuild(rebuild_and_compare(rebuild, bundle))
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        found = report.integrity
        rows = {"fingerprint": report.fingerprint or "unknown"}
        rows["integrity"] = "pass" if found.is_intact else "FAIL"
        for title, paths in (("missing", found.missing), ("not listed", found.extra), ("changed", found.changed)):
            if paths:
                rows[f"  {title}"] = ", ".join(paths)
        rows["structure"] = "FAIL: " + "; ".join(report.structure) if report.structure else "pass"
        if not report.structure and not found.is_intact:
            rows["structure"] = "not-checked"
        rows.update(
            {f"parity {name}": verdict if verdict != "fail" else "FAIL" for name, verdict in report.parity.items()}
        )
        rows.update({f"rebuilt {path}": difference or "the same bytes" for path, difference in report.rebuild.items()})
        console.print_key_values(rows)
        for note in report.notes:
            print(f"note: {note}")
        print("ok" if report.ok else "NOT ok")
    if not report.ok:
        raise SystemExit(1)


@cli.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@_json_option
def vet(manifest: Path, as_json: bool) -> None:
    """Check MANIFEST, its checkpoint and one forward pass, without exporting."""
    from packager.builder.vet import vet as run
    from packager.cli import console

    with _redirect_stdout_to_stderr(), console.show_progress(quiet=as_json) as listener:
        report = run(manifest, listener)
    if as_json:
        print(json.dumps(report.as_json()))
        return
    rows = {
        "model": f"{report.name} {report.version}, {report.parameters:,} parameters",
        "weights": f"key {report.weights_key!r}, prefix {report.prefix!r}",
        "missing": ", ".join(report.missing) or "none",
        "unexpected": ", ".join(report.unexpected) or "none",
        "cases": str(report.cases),
    }
    console.print_key_values({**rows, **_format_about(report.about, {})})
    console.print_table(("", "name", "dtype", "shape"), _format_signature_rows(report.inputs, report.outputs))
    for note in report.notes:
        print(f"note: {note}")
    for what in report.not_checked:
        print(f"note: a build will not check {what}")
    print("ok")


@cli.command()
@click.argument("path", metavar="PATH|URL")
@_json_option
def inspect(path: str, as_json: bool) -> None:
    """Show what a bundle, a checkpoint or an ONNX file holds, at PATH or URL."""
    from packager.cli import console
    from packager.cli.console import escape_unprintable
    from packager.cli.describe import inspect as run

    with console.show_progress(quiet=as_json) as listener:
        found = run(path, listener)
    if as_json:
        print(json.dumps(found))
        return
    if found["kind"] == "bundle":
        config = found["config"]
        artifacts = {name: one["path"] if one else "none" for name, one in config["artifacts"].items()}
        console.print_key_values(
            {"bundle": f"{config['name']} {config['version']}", "fingerprint": found["fingerprint"], **artifacts}
        )
        console.print_table(("", "name", "dtype", "shape"), _format_signature_rows(config["inputs"], config["outputs"]))
        console.print_table(("file", "bytes"), list(found["files"].items()))
    elif found["kind"] == "onnx":
        console.print_key_values(
            {"onnx": f"{found['nodes']} nodes, {found['initializers']} initializers", "opset": str(found["opset"])}
        )
        console.print_table(("", "name", "dtype", "shape"), _format_signature_rows(found["inputs"], found["outputs"]))
        console.print_table(("operator", "count"), list(found["operators"].items()))
    elif found["kind"] == "run":
        console.print_table(
            ("step", "epoch", "metrics", "bytes", "age", "", "path"), _format_checkpoint_rows(found["checkpoints"])
        )
    else:
        beside = escape_unprintable(", ".join(found["beside"])) or "nothing"
        key = f"under {found['key']!r}, beside it: {beside}" if found["key"] else "the file itself"
        console.print_key_values(
            {
                "checkpoint": f"{found['format']}, {len(found['tensors'])} tensors",
                "state dict": key,
                **_format_about(found["about"], found["metadata"]),
            }
        )
        console.print_table(
            ("tensor", "type"), [(escape_unprintable(name), kind) for name, kind in found["tensors"].items()]
        )


@cli.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@_json_option
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Show what differs between the bundles A and B: signature, graph, weights, parity, toolchain."""
    from packager.differences import diff as run

    report = run(a, b)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        for line in report.lines():
            print(line)
    if not report.same:
        raise SystemExit(1)


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--input", "source", required=True, type=click.Path(path_type=Path), metavar="X.npz", help="Inputs by name."
)
@click.option("--output", "target", type=click.Path(path_type=Path), metavar="Y.npz", help="Where outputs go, by name.")
def run(bundle: Path, source: Path, target: Path | None) -> None:
    """Make one prediction with BUNDLE, folder or .zip."""
    from packager.runtime.predict import predict

    for line in predict(bundle, source, target):
        print(line)


@cli.group()
def cache() -> None:
    """The build cache: what it holds, and emptying it."""


@cache.command()
@_json_option
def info(as_json: bool) -> None:
    """Show where the cache is and what it holds."""
    from packager.cli import cache_usage, console

    found = cache_usage.get_cache_info()
    if as_json:
        print(json.dumps(found.as_json()))
        return
    console.print_key_values({"folder": found.folder, **{kind: str(one) for kind, one in found.kinds.items()}})


@cache.command()
@_json_option
def clean(as_json: bool) -> None:
    """Delete everything in the cache."""
    from packager.cli import cache_usage

    freed = cache_usage.clear_cache()
    print(json.dumps({"freed_bytes": freed}) if as_json else f"{freed} bytes freed")


@cli.command()
@click.argument("name", type=click.Choice(["manifest", "config", "parity"]))
def schema(name: Any) -> None:
    """Print a JSON Schema."""
    from packager.cli.schemas import render_schema

    print(render_schema(name), end="")


def _format_checkpoint_rows(checkpoints: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    def row(one: Mapping[str, Any]) -> tuple[Any, ...]:
        metrics = " ".join(f"{name}={value:.6g}" for name, value in one["metrics"].items())
        marks = " ".join(name for name in ("best", "latest") if one[name])
        epoch = "" if one["epoch"] is None else one["epoch"]
        return one["step"], epoch, metrics, one["bytes"], f"{one['age_seconds']:.0f} s", marks, one["path"]

    return [row(one) for one in checkpoints]


def _require_exclusive(flags: Mapping[str, bool]) -> None:
    given = [name for name, value in flags.items() if value]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")


@contextlib.contextmanager
def _redirect_stdout_to_stderr() -> Iterator[None]:
    """On stdout stands the result alone: what the user's code and the libraries print meanwhile goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _format_about(about: Mapping[str, Any], strings: Mapping[str, str]) -> dict[str, str]:
    from packager.checkpoint.metadata import About
    from packager.cli.console import escape_unprintable

    metadata = ", ".join(f"{name}: {value}" for name, value in strings.items())
    rows = {**About(**about).rows(), **({"metadata": metadata} if metadata else {})}
    return {title: escape_unprintable(text) for title, text in rows.items()}


def _format_signature_rows(
    inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
) -> list[tuple[str, ...]]:
    def row(kind: str, tensor: Mapping[str, Any]) -> tuple[str, ...]:
        shape = ", ".join("?" if dim is None else str(dim) for dim in tensor["shape"])
        return kind, tensor["name"], tensor["dtype"], f"[{shape}]"

    return [row("input", one) for one in inputs] + [row("output", one) for one in outputs]


def main() -> NoReturn:
    """Run the command and exit with its status."""
    stdio.prepare_streams()
    faulthandler.enable(2)  # torch, onnxruntime or the user's own library may end the process: then it says where
    # As at Ctrl-C: the staging folder goes, and whoever waits hears of it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    status = _flush_stdout(_run_command(cli))
    sys.stderr.flush()
    # The process has nothing left to do: tearing down an interpreter that holds torch takes 0.7 s.
    os._exit(status)


def _run_command(command: Callable[..., Any]) -> int:
    try:
        command(standalone_mode=False, prog_name="package")
    except PackagerError as error:
        return _report_error(error)
    except click.UsageError as error:
        return _report_error(Usage(error.format_message(), error.ctx.command_path if error.ctx else "package"))
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        stdio.discard_stdout()
        return 2
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2
    except Exception as error:  # noqa: BLE001 (the one place that turns a bug into an exit status)
        return _report_bug(error)
    return 0


def _flush_stdout(status: int) -> int:
    """The status, or another where the answer does not reach whoever asked."""
    try:
        sys.stdout.flush()
    except PackagerError as error:
        return _report_error(error)
    except BrokenPipeError:
        stdio.discard_stdout()
        return 2
    return status


def _report_error(error: PackagerError) -> int:
    _print_error_json(error.as_json())
    print(render_error(error), file=sys.stderr)
    return error.exit_status


def _print_error_json(error: Mapping[str, object]) -> None:
    """The error on stdout for who asked for JSON; where that cannot be written, stderr has it."""
    if "--json" in sys.argv:
        with contextlib.suppress(PackagerError, BrokenPipeError):
            print(json.dumps({"error": error}))


def _report_bug(error: Exception) -> int:
    message = f"{type(error).__name__}: {error}"
    _print_error_json({"code": "bug", "message": message, "where": None, "hint": "please report it"})
    traceback.print_exception(error)
    print("error[bug]: this is a bug in packager, not in your model", file=sys.stderr)
    print(
        "hint: please report the traceback above, with the manifest and the output of `package --version`",
        file=sys.stderr,
    )
    return 3
