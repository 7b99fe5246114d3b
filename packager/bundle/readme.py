"""Render a bundle's README.md from templates/."""

from __future__ import annotations

import functools

import jinja2

from packager.bundle.records import BundleConfig, ParityRecord
from packager.common.paths import data_folder

_MAX_LISTED_PARAMETERS = 3  # with channels that no case exercises


def render_readme(config: BundleConfig, parity: ParityRecord) -> bytes:
    """Render the README of a bundle from its config.json and parity.json. Returns UTF-8."""
    least_exercised = sorted(parity.coverage.silent.items(), key=lambda item: (-item[1].count, item[0]))
    text = _load_template().render(
        config=config,
        parity=parity,
        largest=least_exercised[:_MAX_LISTED_PARAMETERS],
        left_out=sum(not case.golden for case in parity.cases),
    )
    return text.encode()


@functools.cache
def _load_template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(data_folder("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["shape"] = _format_shape
    return environment.get_template("README.md.j2")


def _format_shape(shape: list[int | str | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
