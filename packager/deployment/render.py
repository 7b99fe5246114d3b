"""Fill the templates of exports, and write YAML. Neither needs the extra `build`."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from packager.common.paths import data_folder

_MAX_LINE = 120


def render_template(template: str, /, **values: str) -> bytes:
    """Fill the `$placeholders` of a file in templates/; `$$` is a dollar sign. Returns UTF-8.

    A value goes into the text as it is: the caller quotes it for the language of the template.
    """
    text = (data_folder("templates") / template).read_text(encoding="utf-8")
    return string.Template(text).substitute(values).encode()


def dump_yaml(document: Mapping[str, Any], comments: Sequence[str] = ()) -> bytes:
    """Return a document as YAML in UTF-8, with its keys in order, below one line per comment."""
    lines = "".join(f"# {comment}\n" for comment in comments)
    text = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=_MAX_LINE)
    return (lines + text).encode()


def format_shape(shape: Sequence[int | str | None]) -> str:
    """Return a shape as `[batch, 3, ?]`."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
