"""Define the types and options that commands share."""

from pathlib import Path

import click

PATH = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
