"""Match the inputs of a manifest with the parameters of the module's forward().

Inputs are passed by position, in the order of the manifest; their names need not be those of the parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from packager.errors import InputsDoNotFit
from packager.project.manifest import Project


def check_inputs(project: Project, module: torch.nn.Module) -> None:
    """Check that forward() takes the manifest's inputs in this number and order. Raises `InputsDoNotFit`."""
    names = list(project.manifest.inputs)
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = [item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    accepted = [parameter.name for parameter in positional]
    is_variadic = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    where = project.field_location("inputs")
    takes = f"forward() takes: {', '.join(accepted)}" if accepted else "forward() takes no inputs"
    keyword_only = [item for item in parameters if item.kind is item.KEYWORD_ONLY]
    named_only = [item.name for item in keyword_only if item.default is item.empty or item.name in names]
    if named_only:
        passed = ", ".join(f"{name}={name}" for name in named_only)
        why = f"forward() takes {', '.join(named_only)} by name only, and inputs are passed by position"
        hint = f"remove the * from its parameters, or wrap it in a Module that calls it with {passed}"
        raise InputsDoNotFit(where, why, hint)
    if len(names) > len(accepted) and not is_variadic:
        raise InputsDoNotFit(where, f"{takes}\nthe manifest gives {len(names)}: {', '.join(names)}", "remove inputs")
    required = [parameter.name for parameter in positional if parameter.default is parameter.empty]
    if len(names) < len(required):
        raise InputsDoNotFit(where, f"{takes}\nwithout an input: {', '.join(required[len(names) :])}", "add inputs")
    for position, name in enumerate(names):
        if name in accepted and accepted.index(name) != position:
            raise InputsDoNotFit(
                project.field_location("inputs", name),
                f"{takes}\n{name} is input {position + 1} of the manifest and parameter {accepted.index(name) + 1}",
                "list the inputs in the order of forward(), without gaps; a small wrapper Module can reorder them",
            )


def bind_inputs(project: Project, inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """Return the tensors to call forward() with, from arrays in the manifest's order, of the same shapes.

    Each tensor is a copy of its array, because forward() may write into it. NumPy has no bfloat16: such an input
    arrives as float32 and is rounded here, as the bundle's loader does.
    """
    tensors = [torch.from_numpy(np.array(array)) for array in inputs]
    return tuple(
        tensor.to(torch.bfloat16) if spec.dtype == "bfloat16" else tensor
        for tensor, spec in zip(tensors, project.manifest.inputs.values(), strict=True)
    )
