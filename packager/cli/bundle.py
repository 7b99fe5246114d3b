"""Check, compare, run and convert bundles: `package verify`, `diff`, `run`, `pack` and `unpack`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packager.cli import console
from packager.cli.options import PATH, fingerprint_option, json_option, public_key_option, trust_program_option
from packager.errors import escape_unprintable

if TYPE_CHECKING:
    from packager.runtime.verify import VerifyReport
    from packager.signature.report import SignatureReport


@click.command()
@click.argument("bundle", type=PATH)
@fingerprint_option
@public_key_option
@click.option(
    "--certificate-chain",
    metavar="C",
    type=PATH,
    multiple=True,
    help="Fail unless a certificate signed it that these PEM files vouch for.",
)
@trust_program_option
@click.option("--no-parity", is_flag=True, help="Do not replay the evidence.")
@click.option(
    "--time-limit",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="End the replay after this time. [default: 300, and 0.1 more per MB of the bundle]",
)
@click.option(
    "--memory-limit",
    metavar="MB",
    type=click.FloatRange(min=0, min_open=True),
    help="End the replay if it takes more memory. [default: 2000, and 6 more per MB of the bundle]",
)
@click.option("--rebuild", metavar="MANIFEST", type=PATH, help="Build it again from this manifest, and compare.")
@json_option
def verify(
    bundle: Path,
    fingerprint: str | None,
    public_key: Path | None,
    certificate_chain: tuple[Path, ...],
    trust_program: bool,
    no_parity: bool,
    time_limit: float | None,
    memory_limit: float | None,
    rebuild: Path | None,
    as_json: bool,
) -> None:
    """Check BUNDLE, a folder, a .zip or an executable.

    Check its integrity and structure, and replay parity from its own evidence, in a process with limits. An executable
    is not run: its runner and library must be those that packager and the installed onnxruntime know.
    """
    from packager.bundle.files import is_executable

    if bundle.is_file() and is_executable(bundle):
        from packager.standalone.verify_file import verify_file as run
    else:
        from packager.runtime.verify import verify as run

    report = run(
        bundle,
        fingerprint=fingerprint,
        public_key=public_key,
        certificate_chain=certificate_chain,
        trust_program=trust_program,
        parity=not no_parity,
        time_limit=time_limit,
        memory_limit=memory_limit,
    )
    if rebuild is not None:
        from packager.builder.rebuild import rebuild_and_compare

        report = report.with_rebuild(rebuild_and_compare(rebuild, bundle))
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        console.print_key_values(_format_report(report))
        for note in report.notes:
            console.print_line(f"note: {note}")
        print("ok" if report.ok else "NOT ok")
    if not report.ok:
        raise SystemExit(1)


def _format_report(report: VerifyReport) -> dict[str, str]:
    integrity = report.integrity
    lists = {"missing": integrity.missing, "not listed": integrity.extra, "changed": integrity.changed}
    signature = report.signature
    if report.structure:
        structure = "FAIL: " + "; ".join(report.structure)
    else:
        trusted = signature is None or signature.verdict != "fail"
        structure = "pass" if integrity.is_intact and trusted else "not-checked"
    return {
        "fingerprint": report.fingerprint or "unknown",
        "integrity": "pass" if integrity.is_intact else "FAIL",
        **{f"  {title}": ", ".join(paths) for title, paths in lists.items() if paths},
        **(_format_signature(signature) if signature is not None else {}),
        "structure": structure,
        **{f"parity {name}": "FAIL" if verdict == "fail" else verdict for name, verdict in report.parity.items()},
        **{f"rebuilt {path}": difference or "the same bytes" for path, difference in report.rebuild.items()},
    }


def _format_signature(signature: SignatureReport) -> dict[str, str]:
    rows = {"signature": signature.verdict}
    if signature.error is not None:
        why = signature.error.why or signature.error.message
        rows = {"signature": "\n".join(["FAIL: " + signature.error.code, *why.splitlines()])}
    if signature.signer is not None:
        rows["  key"] = signature.signer.key_id
        if signature.signer.subject is not None:
            rows["  subject"] = escape_unprintable(signature.signer.subject)  # one line, whatever is in it
    return rows


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@json_option
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Show the differences between the bundles A and B.

    Compare their signature, graph, weights, parity and toolchain.
    """
    from packager.differences import diff as run

    report = run(a, b)
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        for line in report.lines():
            console.print_line(line)
    if not report.same:
        raise SystemExit(1)


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--input", "source", metavar="X.npz", required=True, type=PATH, help="Read the inputs from this file, by name."
)
@click.option("--output", "target", metavar="Y.npz", type=PATH, help="Write the outputs to this file, by name.")
@fingerprint_option
@public_key_option
@trust_program_option
def run(
    bundle: Path,
    source: Path,
    target: Path | None,
    fingerprint: str | None,
    public_key: Path | None,
    trust_program: bool,
) -> None:
    """Run one prediction with BUNDLE, a folder, a .zip or an executable."""
    from packager.runtime.loader import load
    from packager.runtime.predict import predict

    loaded = load(bundle, fingerprint=fingerprint, public_key=public_key, trust_program=trust_program)
    for line in predict(loaded, source, target):
        console.print_line(line)


@click.command()
@click.argument("folder", type=PATH)
@click.option("-o", "--output", "target", metavar="FILE", type=PATH, help="The archive to write. [default: FOLDER.zip]")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option
def pack(folder: Path, target: Path | None, force: bool, as_json: bool) -> None:
    """Write the archive of the bundle in FOLDER.

    The archive has the fingerprint of the folder, and its signature if it has one.
    """
    from packager.bundle.packing import pack_bundle

    target = target or folder.parent / f"{folder.absolute().name}.zip"
    fingerprint = pack_bundle(folder, target, force=force)
    _print_written({"archive": str(target), "fingerprint": fingerprint}, as_json)


@click.command()
@click.argument("archive", type=PATH)
@click.option(
    "-o", "--output", "target", metavar="DIR", type=PATH, help="The folder to write. [default: beside ARCHIVE]"
)
@click.option("--force", is_flag=True, help="Replace DIR if it exists.")
@json_option
def unpack(archive: Path, target: Path | None, force: bool, as_json: bool) -> None:
    """Write the files of ARCHIVE into a folder.

    The folder has the fingerprint of the archive, and its signature if it has one.
    """
    from packager.bundle.packing import unpack_bundle

    target = target or archive.with_suffix("")
    fingerprint = unpack_bundle(archive, target, force=force)
    _print_written({"bundle": str(target), "fingerprint": fingerprint}, as_json)


def _print_written(record: dict[str, str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
    else:
        console.print_key_values(record)
