"""Build a bundle, or check what a build would start from: `package build` and `package vet`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from packager.cli import console, stdio
from packager.cli.options import PATH, json_option


@click.command()
@click.argument("manifest", type=PATH)
@click.option(
    "-o", "--output", metavar="DIR", default="dist", show_default=True, type=PATH, help="Write to this folder."
)
@click.option("--force", is_flag=True, help="Replace whatever is at DIR/NAME-VERSION, even if it is not a bundle.")
@click.option("--archive", is_flag=True, help="Also write DIR/NAME-VERSION.zip.")
@click.option("--standalone", is_flag=True, help="Also write DIR/NAME-VERSION.run, a native executable.")
@click.option("--no-cache", is_flag=True, help="Rebuild everything, and use the cache for downloads only.")
@click.option("--verify-cache", is_flag=True, help="Rebuild everything, and fail if the cache has different bytes.")
@click.option("--explain", is_flag=True, help="Say what changed since the last build, or that a stage was cached.")
@click.option("--check", is_flag=True, help="Build again in a different process and folder; fail if a byte differs.")
@click.option("--lock", is_flag=True, help="Write package.lock, with the digests of all inputs and outputs.")
@click.option("--locked", is_flag=True, help="Fail if the build differs from package.lock.")
@click.option("--diagnose", is_flag=True, help="Search for the node at fault as long as it takes, not just 30 s.")
@json_option
def build(
    manifest: Path,
    output: Path,
    force: bool,
    archive: bool,
    standalone: bool,
    no_cache: bool,
    verify_cache: bool,
    explain: bool,
    check: bool,
    lock: bool,
    locked: bool,
    diagnose: bool,
    as_json: bool,
) -> None:
    """Build the bundle that MANIFEST describes, and prove it.

    The bundle is written to DIR/NAME-VERSION.
    """
    from packager.builder.api import build as run
    from packager.common import process_memory

    _require_exclusive({"--no-cache": no_cache, "--verify-cache": verify_cache})
    _require_exclusive({"--lock": lock, "--locked": locked})

    if standalone:  # before anything takes long
        from packager.standalone.runners import find_host_target, read_runner

        read_runner(find_host_target(manifest))
    process_memory.use_single_arena()
    # torch and the ONNX worker share the cores: a thread that spins while it waits takes time from one that
    # works (ResNet-50: 8.4 s instead of 10.5 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with stdio.redirect_stdout_to_stderr(), console.show_progress(quiet=as_json) as listener:
        result = run(
            manifest,
            output,
            force=force,
            archive=archive,
            cache="off" if no_cache else "verify" if verify_cache else "use",
            lock="write" if lock else "require" if locked else "check",
            check=check,
            diagnose=diagnose,
            listener=listener,
        )
    if explain:
        for line in result.explanation or ("the cache was not used",):
            console.print_line(f"explain: {line}", sys.stderr)
    executable = None
    if standalone:
        from packager.standalone.assemble import make_beside

        executable = make_beside(result.bundle, force=force).executable
    files = {"archive": result.archive, "executable": executable}
    rows = {name: str(path) for name, path in files.items() if path is not None}
    if as_json:
        print(json.dumps({**result.as_json(), **rows}))
        return
    console.print_key_values({**result.facts, "bundle": str(result.bundle), **rows, "fingerprint": result.fingerprint})


def _require_exclusive(flags: Mapping[str, bool]) -> None:
    given = [name for name, value in flags.items() if value]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} cannot be used together")


@click.command()
@click.argument("manifest", type=PATH)
@json_option
def vet(manifest: Path, as_json: bool) -> None:
    """Check MANIFEST, its checkpoint and a few forward passes.

    Nothing is exported.
    """
    from packager.builder.vet import vet as run

    with stdio.redirect_stdout_to_stderr(), console.show_progress(quiet=as_json) as listener:
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
    console.print_key_values({**rows, **console.format_about(report.about)})
    console.print_signature(report.inputs, report.outputs)
    for note in report.notes:
        console.print_line(f"note: {note}")
    for check in report.not_checked:
        console.print_line(f"note: a build will not check {check}")
    print("ok")
