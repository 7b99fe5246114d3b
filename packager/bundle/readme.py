"""The bundle's README.md, rendered from templates/."""

from __future__ import annotations

import jinja2

from packager import resources
from packager.bundle.records import Config, Parity


def render(config: Config, parity: Parity) -> bytes:
    """The README of a bundle as UTF-8."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resources.folder("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["shape"] = _shape
    text = environment.get_template("README.md.j2").render(config=config, parity=parity)
    return text.encode()


def _shape(shape: list[int | str | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
