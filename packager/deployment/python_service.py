"""What the generated Python services have in common: the bundle's tensors as names and literals of Python."""

from __future__ import annotations

import keyword
from collections.abc import Mapping

from packager.deployment.render import render_template
from packager.deployment.source import BundleSource
from packager.errors import DeploymentUnsupported

_RESERVED = frozenset({"self", "ctx", "context"})
"""Names of parameters that mean something else in a service."""


def get_array_dtypes(source: BundleSource, target: str) -> Mapping[str, str]:
    """Return numpy's dtype of each input by name; bfloat16 is passed as float32.

    Raises `DeploymentUnsupported` for an input that cannot be a parameter of a function.
    """
    dtypes = {}
    for tensor in source.config["inputs"]:
        name = tensor["name"]
        if not name.isidentifier() or keyword.iskeyword(name) or name in _RESERVED or name.startswith("_"):
            why = f"the input {name[:100]!r} cannot be a parameter of a function in the service"
            raise DeploymentUnsupported(
                source.title, target, why, "rename it in the manifest, and build the bundle again"
            )
        dtypes[name] = "float32" if tensor["dtype"] == "bfloat16" else tensor["dtype"]
    return dtypes


def render_array_function(dtypes: Mapping[str, str]) -> str:
    """Return the source of the function `to_array`, which turns values from JSON into an array of the model's dtype."""
    names = ", ".join(f'"{name}": "{dtype}"' for name, dtype in dtypes.items())
    return render_template("service_to_array.py.tmpl", dtypes=names).decode().rstrip("\n")


def get_load_options(source: BundleSource) -> str:
    """Return the arguments of `packager.load` that follow the fingerprint.

    The fallback of a bundle that has an ONNX model is not taken: it is a program, and needs torch.
    """
    return "" if source.config["artifacts"]["onnx"] is None else ", fallback=False"
