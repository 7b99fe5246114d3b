"""Export a bundle for another server: `package export`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from packager.cli import console
from packager.cli.options import PATH, fingerprint_option, json_option, trust_program_option

_TARGETS = ("triton", "kserve", "bentoml", "ray-serve", "docker", "huggingface")


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--to", "target", required=True, type=click.Choice(_TARGETS), help="The server or hub to export for.")
@click.option("--force", is_flag=True, help="Replace DIR even if it is not an export, or was changed.")
@click.option("--storage-uri", metavar="URI", help="kserve: where the model repository will be uploaded.")
@click.option("--image", metavar="IMAGE", help="kserve: run this image of `package serve` in place of Triton.")
@fingerprint_option
@trust_program_option
@json_option
def export(
    bundle: Path,
    folder: Path,
    target: str,
    force: bool,
    storage_uri: str | None,
    image: str | None,
    fingerprint: str | None,
    trust_program: bool,
    as_json: bool,
) -> None:
    """Write BUNDLE, a folder or .zip, into DIR in the layout that another server runs.

    The seal is checked first. DIR must not exist, or be an earlier export.
    """
    if target != "kserve" and (storage_uri or image):
        raise click.UsageError("--storage-uri and --image are for --to kserve")
    if storage_uri and image:
        raise click.UsageError("--storage-uri and --image exclude each other")
    from packager.deployment.exporter import export_bundle

    result = export_bundle(
        bundle,
        target,
        folder,
        force=force,
        fingerprint=fingerprint,
        trust_program=trust_program,
        storage_uri=storage_uri,
        image=image,
    )
    if as_json:
        print(json.dumps(result.as_json()))
        return
    console.print_key_values({"exported": result.folder, "fingerprint": result.fingerprint})
    for path in result.files:
        console.print_line(f"  {path}")
    for note in result.notes:
        console.print_line(f"note: {note}")
