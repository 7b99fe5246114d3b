"""Sign a bundle: `package sign`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from packager.cli import console
from packager.cli.options import PATH, json_option
from packager.errors import escape_unprintable

_PASSWORD = "PACKAGER_KEY_PASSWORD"


@click.command()
@click.argument("bundle", type=PATH)
@click.option(
    "--key", metavar="K", required=True, type=PATH, help="The private key: a PEM file, P-256, P-384 or P-521."
)
@click.option(
    "--certificate",
    "certificates",
    metavar="C",
    type=PATH,
    multiple=True,
    help="The certificate of the key, then those of its issuers.",
)
@json_option
def sign(bundle: Path, key: Path, certificates: tuple[Path, ...], as_json: bool) -> None:
    """Sign BUNDLE, a folder or .zip: write model.sig into it.

    The password of an encrypted key is taken from PACKAGER_KEY_PASSWORD, or asked for.
    """
    from packager.signature.sign import sign as run

    result = run(bundle, key=key, password=_ask_password(key), certificates=certificates)
    if as_json:
        print(json.dumps(result.as_json()))
        return
    rows = {"signed": str(bundle), "fingerprint": result.fingerprint, "key": result.signer.key_id}
    if result.signer.subject is not None:
        rows["subject"] = escape_unprintable(result.signer.subject)
    console.print_key_values(rows)


def _ask_password(key: Path) -> str | None:
    """Return the password of a key from the environment or the terminal, None if there is none or none is needed."""
    password = os.environ.get(_PASSWORD)
    if password is not None or not sys.stdin.isatty():
        return password
    try:
        from packager.signature.keys import is_encrypted
    except ModuleNotFoundError:  # signing is about to say so
        return None
    return str(click.prompt(f"password of {key}", hide_input=True, err=True)) if is_encrypted(key) else None
