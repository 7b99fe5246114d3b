"""Define the option that commands share."""

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object to stdout.")
