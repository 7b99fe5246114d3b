"""Construct the module with the user's code, and put the checkpoint's weights into it.

Initializing weights that a checkpoint overwrites at once can cost more than the rest of a build. Parameters are
therefore built on the meta device first, where nothing is computed; buffers stay real, because many are not in a
checkpoint and hold values that the constructor computes. Where this shortcut could change what the module computes,
the module is constructed again without it: see `construct_module`.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, ModuleType
from typing import Any

import torch

from packager.checkpoint.key_matching import Fit
from packager.checkpoint.state_dict import Checkpoint
from packager.checkpoint.wrappers import wrapped_attribute
from packager.errors import (
    EntryNotModule,
    ModelArgumentsWrong,
    ModelConstructionFailed,
    StateDoesNotFit,
    did_you_mean,
)
from packager.model.importing import format_user_frame, get_entry_name
from packager.model.weights import load_weights
from packager.project.manifest import Project

_MAX_VISITED_OBJECTS = 200_000  # in the search for stale tensors


def construct_module(
    project: Project, entry: Callable[..., Any], checkpoint: Checkpoint
) -> tuple[torch.nn.Module, Fit]:
    """Call the entry with the manifest's kwargs, and load the weights: on the meta device if that is exact.

    It is not exact if the constructor drew random numbers, since skipped initializations do not consume those that
    they otherwise would, or if an object that the module can reach still refers to a parameter as it was before the
    weights were loaded.

    Raises `ModelArgumentsWrong`, `ModelConstructionFailed`, `EntryNotModule`, and what `load_weights` raises.
    """
    _check_arguments(project, entry)
    random_state = torch.random.get_rng_state()
    with _parameters_on_meta():
        try:
            module = _unwrap(entry(**project.manifest.model.kwargs))
        except (Exception, SystemExit):  # noqa: BLE001 (constructing without the meta device raises it again)
            module = None
    random_used = not torch.equal(random_state, torch.random.get_rng_state())
    torch.random.set_rng_state(random_state)
    is_plain_module = isinstance(module, torch.nn.Module) and not isinstance(module, torch.jit.ScriptModule)
    if is_plain_module and not random_used:
        try:
            fit = load_weights(project, module, checkpoint, assign=True)
        except StateDoesNotFit:
            pass  # either the plain way below raises it too, or the meta device caused it
        else:
            if not _has_stale_tensors(module):
                return module, fit
    module = _construct_without_meta(project, entry)
    return module, load_weights(project, module, checkpoint, assign=False)


def _check_arguments(project: Project, entry: Callable[..., Any]) -> None:
    """Check that the entry's signature takes the manifest's kwargs. Raises `ModelArgumentsWrong`."""
    kwargs = project.manifest.model.kwargs
    where = project.field_location("model", "kwargs") if kwargs else project.field_location("model", "entry")
    try:
        signature = inspect.signature(entry)
    except ValueError:
        return  # a builtin without a signature: calling it will show
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        accepted = [
            parameter.name for parameter in signature.parameters.values()
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
        unknown = [name for name in kwargs if name not in accepted]
        hint = did_you_mean(unknown[0], accepted) if unknown else f"it takes: {', '.join(accepted)}"
        raise ModelArgumentsWrong(get_entry_name(project), where, str(error), hint) from None


def _construct_without_meta(project: Project, entry: Callable[..., Any]) -> torch.nn.Module:
    name, where = get_entry_name(project), project.field_location("model", "entry")
    try:
        module = _unwrap(entry(**project.manifest.model.kwargs))
    except (Exception, SystemExit) as error:
        raise ModelConstructionFailed(name, where, format_user_frame(error, project.folder)) from error
    if not isinstance(module, torch.nn.Module):
        raise EntryNotModule(name, where, f"{name} returned an instance of {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule) and not module.state_dict():
        why = f"{name} returned a frozen ScriptModule: its weights are constants, and none can be loaded"
        raise StateDoesNotFit(where, why, "return the module as it is before torch.jit.freeze()")
    return module.to("cpu")


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move every parameter that a module registers in the block to the meta device; tied parameters stay tied."""
    original = torch.nn.Module.register_parameter
    # The originals are kept, too: otherwise their ids could be reused.
    moved: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}

    def register(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None and not param.is_meta and type(param) is torch.nn.Parameter:
            if id(param) not in moved:
                moved[id(param)] = param, torch.nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
            param = moved[id(param)][1]
        original(self, name, param)

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign]  # restored below
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = original  # type: ignore[method-assign]  # as it was


def _has_stale_tensors(module: torch.nn.Module) -> bool:
    """Return whether the module reaches a tensor without values, or a parameter that is no longer one of its own.

    Lists, closures, partial functions and plain objects may hold a parameter too, and loading replaces it in the
    module alone. The search follows the references that the garbage collector sees, but not into modules, classes
    and the globals of functions.
    """
    parameter_ids = {id(parameter) for parameter in module.parameters()}
    seen: set[int] = set()
    pending: list[Any] = [module]
    while pending:
        item = pending.pop()
        if id(item) in seen or isinstance(item, (type, ModuleType, str, bytes, int, float, torch.dtype)):
            continue
        seen.add(id(item))
        if len(seen) > _MAX_VISITED_OBJECTS:
            return True  # too many to be sure
        if isinstance(item, torch.Tensor):
            if item.is_meta or (isinstance(item, torch.nn.Parameter) and id(item) not in parameter_ids):
                return True
        elif isinstance(item, FunctionType):
            pending += [cell.cell_contents for cell in item.__closure__ or () if _is_cell_filled(cell)]
            pending += [item.__defaults__, item.__kwdefaults__, vars(item)]
        else:
            pending += gc.get_referents(item)
    return False


def _is_cell_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (reading it is the test)
    except ValueError:
        return False
    return True


def _unwrap(value: Any) -> Any:
    """Remove torch.compile and DataParallel around a module and its parts, which exporters cannot look into.

    The module computes the same. Anything that is not a module is returned as it is.
    """
    if not isinstance(value, torch.nn.Module):
        return value
    for part in list(value.modules()):
        if getattr(part, "_compiled_call_impl", None) is not None:  # set by Module.compile()
            part._compiled_call_impl = None
        if hasattr(part, "_jit_is_scripting"):  # Lightning's; if it is False, torch.jit looks for a `trainer`
            vars(part)["_jit_is_scripting"] = True
        for name, child in list(part._modules.items()):  # not named_children(), which omits a second name
            if child is not None:
                part._modules[name] = _unwrap_outermost(child)
    return _unwrap_outermost(value)


def _unwrap_outermost(module: torch.nn.Module) -> torch.nn.Module:
    attribute = wrapped_attribute(module)
    return module if attribute is None else module.get_submodule(attribute)
