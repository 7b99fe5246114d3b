"""Make an executable of a bundle: `package standalone`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from packager.cli import console
from packager.cli.options import PATH, json_option


@click.command()
@click.argument("bundle", type=PATH)
@click.option("-o", "--output", metavar="FILE", required=True, type=PATH, help="The executable to write.")
@click.option(
    "--target",
    type=click.Choice(["linux-x64", "linux-arm64"]),
    help="What it runs on. [default: this machine]",
)
@click.option(
    "--onnxruntime-wheel",
    metavar="WHEEL",
    type=PATH,
    help="Take onnxruntime's library from this file. [default: from the installed one]",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option
def standalone(
    bundle: Path, output: Path, target: str | None, onnxruntime_wheel: Path | None, force: bool, as_json: bool
) -> None:
    """Write one native executable: BUNDLE, a folder or .zip, with its runtime.

    It needs no Python where it runs. Its bundle has the fingerprint of BUNDLE.
    """
    from packager.standalone.assemble import make_standalone

    result = make_standalone(bundle, output, target=target, force=force, onnxruntime_wheel=onnxruntime_wheel)
    if as_json:
        print(json.dumps(result.as_json()))
        return
    console.print_key_values(
        {
            "executable": str(result.executable),
            "fingerprint": result.fingerprint,
            "target": result.target,
            "onnxruntime": result.onnxruntime,
            "size": f"{result.size / 1e6:.1f} MB",
        }
    )
