"""Define the types and options that commands share."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
fingerprint_option = click.option("--fingerprint", metavar="h1:…", help="Fail unless the bundle has this fingerprint.")
public_key_option = click.option(
    "--public-key", metavar="P", type=PATH, help="Fail unless this key, a PEM file, signed it."
)
trust_program_option = click.option(
    "--trust-program",
    is_flag=True,
    help="Trust whoever made the bundle, and run its TorchScript model or exported program where needed: "
    "it can read and write files as you can.",
)
