"""Check, compare or run bundles: `package verify`, `package diff` and `package run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packager.cli import console
from packager.cli.options import PATH, json_option

if TYPE_CHECKING:
    from packager.runtime.verify import VerifyReport
    from packager.signature.report import SignatureReport


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--fingerprint", metavar="h1:…", help="Fail unless the bundle has this fingerprint.")
@click.option("--public-key", metavar="P", type=PATH, help="Fail unless this key, a PEM file, signed it.")
@click.option(
    "--certificate-chain",
    metavar="C",
    type=PATH,
    multiple=True,
    help="Fail unless a certificate signed it that these PEM files vouch for.",
)
@click.option("--no-parity", is_flag=True, help="Do not replay the evidence.")
@click.option("--rebuild", metavar="MANIFEST", type=PATH, help="Build it again from this manifest, and compare.")
@json_option
def verify(
    bundle: Path,
    fingerprint: str | None,
    public_key: Path | None,
    certificate_chain: tuple[Path, ...],
    no_parity: bool,
    rebuild: Path | None,
    as_json: bool,
) -> None:
    """Check BUNDLE, a folder or .zip.

    Check its integrity and structure, and replay parity from its own evidence.
    """
    from packager.runtime.verify import verify as run

    report = run(
        bundle,
        fingerprint=fingerprint,
        public_key=public_key,
        certificate_chain=certificate_chain,
        parity=not no_parity,
    )
    if rebuild is not None:
        from packager.builder.rebuild import rebuild_and_compare

        report = report.with_rebuild(rebuild_and_compare(rebuild, bundle))
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        console.print_key_values(_format_report(report))
        for note in report.notes:
            print(f"note: {note}")
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
            rows["  subject"] = signature.signer.subject
    return {title: "\n".join(map(console.escape_unprintable, row.split("\n"))) for title, row in rows.items()}


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
            print(line)
    if not report.same:
        raise SystemExit(1)


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--input", "source", metavar="X.npz", required=True, type=PATH, help="Read the inputs from this file, by name."
)
@click.option("--output", "target", metavar="Y.npz", type=PATH, help="Write the outputs to this file, by name.")
def run(bundle: Path, source: Path, target: Path | None) -> None:
    """Run one prediction with BUNDLE, a folder or .zip."""
    from packager.runtime.predict import predict

    for line in predict(bundle, source, target):
        print(line)
