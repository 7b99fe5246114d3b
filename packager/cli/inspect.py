"""Show what files contain, or must contain: `package inspect` and `package schema`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from packager.cli import console
from packager.cli.options import json_option
from packager.errors import escape_unprintable


@click.command()
@click.argument("path", metavar="PATH|URL")
@json_option
def inspect(path: str, as_json: bool) -> None:
    """Show what a bundle, a checkpoint or an ONNX file contains."""
    from packager.cli import describe

    with console.show_progress(quiet=as_json) as listener:
        description = describe.inspect(path, listener)
    if as_json:
        print(json.dumps(description))
    elif description["kind"] == "bundle":
        _print_bundle(description)
    elif description["kind"] == "onnx":
        _print_onnx(description)
    elif description["kind"] == "run":
        header = ("step", "epoch", "metrics", "bytes", "age", "", "path")
        console.print_table(header, _format_checkpoint_rows(description["checkpoints"]))
    else:
        _print_checkpoint(description)


def _print_bundle(description: Mapping[str, Any]) -> None:
    config = description["config"]
    artifacts = {name: artifact["path"] if artifact else "none" for name, artifact in config["artifacts"].items()}
    reasons = {
        f"{kind} left out": f"{'wrong: ' if entry['verdict'] == 'fail' else ''}{entry['reason']}"
        for kind, entry in config.get("left_out", {}).items()
    }
    rows = {"bundle": f"{config['name']} {config['version']}", "fingerprint": description["fingerprint"], **artifacts}
    if reasons and all(config["artifacts"].get(kind) is None for kind in ("torchscript", "torch-export")):
        rows["fallback"] = "none: the bundle runs only where ONNX loads"
    console.print_key_values({**rows, **reasons})
    console.print_signature(config["inputs"], config["outputs"])
    console.print_table(("file", "bytes"), list(description["files"].items()))


def _print_onnx(description: Mapping[str, Any]) -> None:
    size = f"{description['nodes']} nodes, {description['initializers']} initializers"
    console.print_key_values({"onnx": size, "opset": str(description["opset"])})
    console.print_signature(description["inputs"], description["outputs"])
    console.print_table(("operator", "count"), list(description["operators"].items()))


def _format_checkpoint_rows(checkpoints: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    rows = []
    for entry in checkpoints:
        metrics = " ".join(f"{name}={value:.6g}" for name, value in entry["metrics"].items())
        epoch = "" if entry["epoch"] is None else entry["epoch"]
        marks = " ".join(mark for mark in ("best", "latest") if entry[mark])
        age = f"{entry['age_seconds']:.0f} s"
        rows.append((entry["step"], epoch, metrics, entry["bytes"], age, marks, entry["path"]))
    return rows


def _print_checkpoint(description: Mapping[str, Any]) -> None:
    key = "the file itself"
    if description["key"]:
        beside = escape_unprintable(", ".join(description["beside"])) or "nothing"
        key = f"under {description['key']!r}, beside it: {beside}"
    rows = {"checkpoint": f"{description['format']}, {len(description['tensors'])} tensors", "state dict": key}
    metadata = ", ".join(f"{name}: {value}" for name, value in description["metadata"].items())
    if metadata:
        metadata = escape_unprintable(metadata)
    console.print_key_values(
        {**rows, **console.format_about(description["about"]), **({"metadata": metadata} if metadata else {})}
    )
    console.print_table(("tensor", "type"), list(description["tensors"].items()))


@click.command()
@click.argument("name", type=click.Choice(["manifest", "config", "parity"]))
def schema(name: Any) -> None:
    """Print the JSON Schema of a manifest, config.json or parity.json."""
    from packager.cli.schemas import render_schema

    print(render_schema(name), end="")
