"""Load a checkpoint's tensors into a module, in the module's dtypes.

Everything that could silently change what the module computes is checked first: names and shapes (see
`packager.checkpoint.key_matching`), state that is not a tensor, integers for float parameters, complex for real, NaN
and infinity. Values that are rounded to a narrower dtype are reported in `Fit.downcast`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from packager.checkpoint.key_matching import Fit, fit, module_metadata
from packager.checkpoint.state_dict import Checkpoint, saved_metadata
from packager.errors import StateDoesNotFit, WeightsNotFinite, WeightsNotFound
from packager.model.importing import format_user_frame
from packager.project.manifest import Project


def load_weights(project: Project, module: torch.nn.Module, checkpoint: Checkpoint, *, assign: bool) -> Fit:
    """Load the checkpoint into the module: copied into its tensors or, with `assign`, in their place.

    Returns which tensors matched; their values are those of the checkpoint, before any rounding.
    Raises `StateDoesNotFit` or `WeightsNotFinite`, and `WeightsNotFound` if the checkpoint holds nothing and the module
    has weights.
    """
    settings, where = project.manifest.checkpoint, project.field_location("checkpoint")
    module_state = module.state_dict(keep_vars=True)
    current = {name: tensor for name, tensor in module_state.items() if isinstance(tensor, torch.Tensor)}
    if current and not checkpoint.state:
        why = f"the file holds nothing, and the module has: {join_names(list(current))}"
        raise WeightsNotFound(settings.weights, project.field_location("checkpoint", "weights"), why)
    _check_state_supported(where, module_state)
    tied = _find_tied_parameters(module)
    match = fit(
        checkpoint.state,
        {name: tuple(tensor.shape) for name, tensor in current.items()},
        prefix=settings.prefix,
        strict=settings.strict,
        allow_missing=settings.allow_missing,
        allow_unexpected=settings.allow_unexpected,
        tied=tied,
        where=where,
    )
    if current and not match.state:
        raise StateDoesNotFit(where, "no tensor of the checkpoint has a place in the module", "see checkpoint.prefix")
    _check_number_kinds(where, match.state, current)
    check_finite(where, match.state, current)
    state = {name: tensor.to(current[name].dtype) for name, tensor in match.state.items()}
    downcast = [name for name, tensor in match.state.items() if _loses_precision(tensor, current[name])]
    check_finite(where, {name: state[name] for name in downcast}, current)  # again: a value may exceed the dtype
    metadata = module_metadata(match.names, saved_metadata(checkpoint.state), saved_metadata(module_state))
    _load_state(project, module, state, metadata, assign=assign)
    if assign:
        _restore_ties(module, tied, list(state))
    changes = [f"{name} ({_format_dtype(match.state[name])} → {_format_dtype(current[name])})" for name in downcast]
    return replace(match, downcast=tuple(changes))


def _load_state(
    project: Project,
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Mapping[str, Any]],
    *,
    assign: bool,
) -> None:
    """Load tensors by the module's names; `metadata` has the version that each submodule was saved by, by its path.

    Raises `StateDoesNotFit` for any error of the module's own loading code, a method or a hook.
    """
    versioned_state = OrderedDict(state)
    vars(versioned_state)["_metadata"] = metadata  # where torch looks for it
    try:
        module.load_state_dict(versioned_state, strict=False, assign=assign)
    except (Exception, SystemExit) as error:
        why = f"the module refuses to load it: {format_user_frame(error, project.folder)}"
        hint = "_load_from_state_dict() and the module's hooks run as in torch; save the weights again with this code"
        raise StateDoesNotFit(project.field_location("checkpoint"), why, hint) from error


def _find_tied_parameters(module: torch.nn.Module) -> list[frozenset[str]]:
    """Return the groups of names that share one parameter."""
    names: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [frozenset(group) for group in names.values() if len(group) > 1]


def _restore_ties(module: torch.nn.Module, tied: Sequence[Collection[str]], loaded: Sequence[str]) -> None:
    """Give all names of a group one parameter again: the one loaded last, as where a load copies into shared memory."""
    for group in tied:
        names = [name for name in loaded if name in group]
        if names:
            shared = module.get_parameter(names[-1])
            for name in group:
                parent, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(parent), leaf, shared)


def join_names(names: Sequence[str], limit: int = 10) -> str:
    """Return the first names, separated by commas, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


# -- checks -----------------------------------------------------------------------------------


def check_finite(where: str, state: Mapping[str, torch.Tensor], current: Mapping[str, torch.Tensor]) -> None:
    """Check for NaN and infinity; a buffer that the module constructs with infinities, as masks are, may have them.

    `current` are the module's own tensors, by the names of `state`. Raises `WeightsNotFinite`.
    """
    names = [name for name, tensor in state.items() if not (_is_finite(tensor) or _is_mask(tensor, current[name]))]
    if names:
        raise WeightsNotFinite(where, names)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether every value is finite, without a copy: the minimum and the maximum show NaN and infinity."""
    if not _is_fractional(tensor) or not tensor.numel():
        return True
    values = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    if values.dtype.itemsize == 1:  # aminmax() does not support float8
        values = values.float()
    return all(bool(extreme.isfinite()) for extreme in values.aminmax())


def _is_mask(tensor: torch.Tensor, current: torch.Tensor) -> bool:
    is_buffer = not isinstance(current, torch.nn.Parameter) and not current.is_meta
    return is_buffer and bool(current.isinf().any()) and not bool(tensor.isnan().any())


def _check_state_supported(where: str, module_state: Mapping[str, Any]) -> None:
    """Check that the module's state consists of tensors with known shapes. Raises `StateDoesNotFit`."""
    if names := [name for name, value in module_state.items() if not isinstance(value, torch.Tensor)]:
        why = f"the module keeps state that is not a tensor: {', '.join(names)}"
        raise StateDoesNotFit(where, why, "get_extra_state() is not supported; register buffers instead")
    if names := [name for name, value in module_state.items() if torch.nn.parameter.is_lazy(value)]:
        why = f"the module does not know these shapes before its first call: {', '.join(names)}"
        raise StateDoesNotFit(where, why, "use the plain module instead of the Lazy one")


def _check_number_kinds(where: str, state: Mapping[str, torch.Tensor], current: Mapping[str, torch.Tensor]) -> None:
    """Check for values whose meaning a conversion would change. Raises `StateDoesNotFit`."""
    if names := [name for name, tensor in state.items() if tensor.is_complex() and not current[name].is_complex()]:
        why = f"complex in the checkpoint, real in the module: {join_names(names)}"
        raise StateDoesNotFit(where, why, "save real tensors, or make the parameters complex")
    parameters = {name: current[name] for name in state if isinstance(current[name], torch.nn.Parameter)}
    floats = [name for name, parameter in parameters.items() if parameter.is_floating_point()]
    if integers := [f"{name} ({_format_dtype(state[name])})" for name in floats if not _is_fractional(state[name])]:
        why = f"integers in the checkpoint, float parameters in the module: {join_names(integers)}"
        raise StateDoesNotFit(where, why, "quantized weights mean nothing without their scales: save the floats")


def _is_fractional(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _loses_precision(saved: torch.Tensor, current: torch.Tensor) -> bool:
    """Return whether values may change in the module's dtype."""
    if saved.dtype == current.dtype or not saved.is_floating_point():
        return False
    if not current.is_floating_point():
        return not current.is_complex()
    saved_limits, limits = torch.finfo(saved.dtype), torch.finfo(current.dtype)
    return saved_limits.eps < limits.eps or saved_limits.max > limits.max


def _format_dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
