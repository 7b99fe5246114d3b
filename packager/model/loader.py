"""Manifest + checkpoint → the eager module, ready: on the CPU, in eval mode, without gradients.

The user's code is imported as it is, with the manifest's folder on the path, and taken out of
`sys.modules` again afterwards, so that two projects that both have a `model.py` can be built by
one process.

Initialising weights that a checkpoint overwrites at once can cost more than all the rest of a
build. So parameters are first built on the meta device, where nothing is computed; buffers stay
real, because many are not in a checkpoint and carry values that the constructor computes. Where
that shortcut could change what the module computes, the module is built again in the plain way:
see `_construct`.
"""

from __future__ import annotations

import copy
import gc
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

from packager import checkpoint
from packager.checkpoint.key_matching import module_metadata
from packager.checkpoint.locate import HUGGINGFACE_CONFIG_FILE, LocatedCheckpoint, digest_checkpoint
from packager.checkpoint.state_dict import read_located, saved_metadata
from packager.common.hashing import sha256_file
from packager.common.paths import PACKAGE
from packager.errors import (
    EntryImportFailed,
    EntryNotFound,
    EntryNotModule,
    InputChanged,
    InputsDoNotFit,
    ModelArgumentsWrong,
    ModelConstructionFailed,
    StateDoesNotFit,
    WeightsNotFinite,
    WeightsNotFound,
    did_you_mean,
)
from packager.model import code_dependencies, huggingface, serialized
from packager.project import preflight
from packager.project.manifest import Project

_MAX_VISITED_OBJECTS = 200_000  # that are looked at for what refers to a parameter
_SMALL_PARAMETER_BYTES = 1 << 16  # of a parameter that a copy has for itself: a scale that a first call may set
_LARGE_BUFFER_BYTES = 1 << 24  # of a buffer, likewise: it may be what forward() keeps


@dataclass(frozen=True)
class LoadedModel:
    """The user's module with its weights, and the digests of what it was made from.

    `untouched` is a copy that shares the large weights and has not been called: what the first call keeps is not in it.
    It is None where the module cannot be copied. `versions` count, by parameter, how often it was written to.
    """

    module: torch.nn.Module
    key_match: checkpoint.Fit
    weights_key: str
    parameters: int
    checkpoint_sha256: str
    about: checkpoint.About
    from_model_weights: tuple[str, ...] = ()
    skipped_checkpoints: tuple[str, ...] = ()
    chosen_checkpoint: str = ""
    pristine: torch.nn.Module | None = None
    parameter_versions: tuple[int, ...] = ()

    def pristine_copy(self) -> torch.nn.Module:
        """A module that was never called, for an artifact to be made of; the one that was, where it cannot be copied.

        What earlier calls left in a module would be in the artifact, and a build that knows more calls it less.
        """
        copied = None if self.pristine is None else _copy_module(self.pristine)
        return self.module if copied is None else copied

    def changed_parameters(self) -> tuple[str, ...]:
        """The parameters that were written to since they were loaded."""
        named = self.module.named_parameters()
        return tuple(
            name for (name, one), version in zip(named, self.parameter_versions, strict=True) if one._version != version
        )

    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the weights came to be."""
        told = {
            "not in the checkpoint, so as the constructor left them": self.key_match.missing,
            "not among the averaged weights, so from the model's own in the checkpoint": self.from_model_weights,
            "rounded to the module's dtype": self.key_match.downcast,
        }
        damaged = [
            f"{one.partition(chr(10))[0]}; {self.chosen_checkpoint} is taken" for one in self.skipped_checkpoints
        ]
        return (*damaged, *(f"{what}: {_join_first(names)}" for what, names in told.items() if names))


def _join_first(names: Sequence[str], shown: int = 10) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"


@contextmanager
def open_model_loader(
    project: Project, located: LocatedCheckpoint | None = None
) -> Iterator[Callable[[], LoadedModel]]:
    """Yields what loads the eager module. The user's code stays importable while the context is open.

    `located` are the files of the checkpoint as `preflight.located` found them, where the caller knows them. The call
    raises an error of `packager.errors` for an entry that does not import or is no Module, kwargs
    it does not take, and a checkpoint that cannot be read or does not fit.
    """
    with _import_path(project.folder), ExitStack() as stack:

        def opening() -> LoadedModel:
            entry = None if project.manifest.model.entry is None else _resolve_entry(project)
            found = _load_model(project, entry, located or preflight.locate_checkpoint(project))
            if "torch._dynamo" in sys.modules:  # what is compiled computes the same without, and writes no files
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            return found

        yield opening


def format_user_frame(error: BaseException, folder: Path) -> str:
    """The last line of the user's own code in a traceback, with the message: `model.py:12 in forward: …`."""
    if isinstance(error, SyntaxError) and error.filename is not None:  # no frame is in the file that does not compile
        line = f"\n  {error.text.strip()}" if error.text else ""
        return f"{Path(error.filename).name}:{error.lineno}{line}\n{type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code_dependencies.relative_inside(frame.filename, folder)]
    message = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    chosen = own or [frame for frame in frames if str(PACKAGE) not in frame.filename]
    if not chosen:
        return message
    frame = chosen[-1]
    name = Path(frame.filename).name
    line = f"\n  {frame.line}" if frame.line else ""
    return f"{name}:{frame.lineno} in {frame.name}{line}\n{message}"


# -- the user's code ------------------------------------------------------------------------


@contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    """Import with `folder` on the path; the user's own modules are taken out again afterwards.

    So is what their code put on the path, and the working directory is what it was: the cache is asked by both, before
    the code runs, and must be written by the same.
    """
    before, search, entries, directory = dict(sys.modules), sys.path, list(sys.path), os.getcwd()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in code_dependencies.find_imported(before):
            if name in before:
                sys.modules[name] = before[name]
            else:
                del sys.modules[name]
        search[:] = entries
        sys.path = search  # the code may have assigned another list
        os.chdir(directory)


def _get_entry_name(project: Project) -> str:
    return project.manifest.model.entry or ""


def _resolve_entry(project: Project) -> Callable[..., Any]:
    entry, where = _get_entry_name(project), project.field_location("model", "entry")
    place, _, attribute = entry.rpartition(":")
    module = _import_file(project, place) if place.endswith(".py") else _import_name(project, place)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_") and callable(vars(found)[name])]
            own = [name for name in public if getattr(vars(found)[name], "__module__", "") == module.__name__]
            why = f"{place} has no {part!r}"
            raise EntryNotFound(entry, where, why, did_you_mean(part, own or public[:20]))
        found = getattr(found, part)
    if not callable(found) or isinstance(found, torch.nn.Module):
        raise EntryNotModule(entry, where, f"{attribute} is a {type(found).__name__} that is already made")
    call: Callable[..., Any] = found
    return call


def _import_file(project: Project, place: str) -> ModuleType:
    entry, where = _get_entry_name(project), project.field_location("model", "entry")
    path = Path(os.path.abspath(project.folder / place))  # links are not followed: code may ask where it lies
    if not path.is_file():
        near = sorted(str(one.relative_to(project.folder)) for one in project.folder.glob("*.py"))
        raise EntryNotFound(entry, where, f"there is no file {path}", did_you_mean(place, near))
    # The file's stem, not its path, names the module: the name ends up in TorchScript's class names.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise EntryNotFound(entry, where, f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    shadowed = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if shadowed is not None:
            sys.modules[path.stem] = shadowed
        raise EntryImportFailed(entry, where, format_user_frame(error, project.folder)) from error
    return module


def _import_name(project: Project, place: str) -> ModuleType:
    entry, where = _get_entry_name(project), project.field_location("model", "entry")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            hint = f"write {place}.py:…" if (project.folder / f"{place}.py").exists() else None
            raise EntryNotFound(entry, where, f"there is no module {place!r}", hint) from None
        raise EntryImportFailed(entry, where, format_user_frame(error, project.folder)) from error
    except (Exception, SystemExit) as error:
        raise EntryImportFailed(entry, where, format_user_frame(error, project.folder)) from error


# -- the weights ----------------------------------------------------------------------------


def _load_model(project: Project, entry: Callable[..., Any] | None, located: LocatedCheckpoint) -> LoadedModel:
    wanted = project.manifest.checkpoint
    if located.replaced():
        raise InputChanged(project.checkpoint_display_name)
    sha256 = digest_checkpoint(located, sha256_file)  # before anything in it is parsed
    preflight.check_checkpoint_digest(project, sha256)
    where = project.field_location("checkpoint", "path")
    about = checkpoint.About()
    borrowed: tuple[str, ...] = ()
    if entry is None and HUGGINGFACE_CONFIG_FILE not in {file.name for file in located.files}:
        (module, fit), key = serialized.load_serialized(located, where), ""
    else:
        try:
            read = read_located(located, wanted.weights, trust_pickle=wanted.trust_pickle, where=where)
        except WeightsNotFound as error:
            error.where = project.field_location("checkpoint", "weights")
            raise
        about, key, borrowed = read.about, read.key, read.from_model_weights
        if entry is None:
            module, fit = huggingface.load_pretrained(project, located, read)
        else:
            _check_arguments(project, entry)
            module, fit = _construct(project, entry, read)
            if isinstance(module, torch.jit.ScriptModule):
                module = serialized.SerializedModule(module.eval())
    if entry is None:
        _check_finite(where, fit.state, module.state_dict(keep_vars=True))
    module.eval().requires_grad_(False)
    check_inputs(project, module)
    return LoadedModel(
        module=module,
        key_match=fit,
        weights_key=key,
        parameters=sum(one.numel() for one in module.parameters()),
        checkpoint_sha256=sha256,
        about=about,
        from_model_weights=borrowed,
        skipped_checkpoints=located.skipped_checkpoints,
        chosen_checkpoint=located.head.parent.name,
        pristine=_copy_module(module),
        parameter_versions=tuple(one._version for one in module.parameters()),
    )


def _copy_module(module: torch.nn.Module) -> torch.nn.Module | None:
    if any(isinstance(one, torch.jit.ScriptModule) for one in module.modules()):
        return None  # its weights would be copied too
    shared: list[torch.Tensor] = [
        one for one in module.parameters() if one.nbytes > _SMALL_PARAMETER_BYTES or type(one) is not torch.nn.Parameter
    ]
    shared += [one for one in module.buffers() if one.nbytes > _LARGE_BUFFER_BYTES]
    try:
        return copy.deepcopy(module, {id(one): one for one in shared})
    except Exception:  # noqa: BLE001 (the user's objects may refuse to be copied in any way; what is not checked is said)
        return None


def _check_arguments(project: Project, entry: Callable[..., Any]) -> None:
    kwargs = project.manifest.model.kwargs
    where = project.field_location("model", "kwargs") if kwargs else project.field_location("model", "entry")
    try:
        signature = inspect.signature(entry)
    except ValueError:
        return  # a builtin without a signature: calling it will tell
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        known = [
            one.name for one in signature.parameters.values()
            if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]  # fmt: skip
        wrong = [name for name in kwargs if name not in known]
        hint = did_you_mean(wrong[0], known) if wrong else f"it takes: {', '.join(known)}"
        raise ModelArgumentsWrong(_get_entry_name(project), where, str(error), hint) from None


def _construct(
    project: Project, entry: Callable[..., Any], read: checkpoint.Checkpoint
) -> tuple[torch.nn.Module, checkpoint.Fit]:
    """The module with the checkpoint's weights: by the shortcut where it is exact, else plainly.

    The shortcut is refused where the constructor drew random numbers, since skipped initialisations
    do not consume those that they otherwise would, and where anything that the module can reach still
    refers to a parameter as it was before the weights came.
    """
    state = torch.random.get_rng_state()
    with _parameters_on_meta():
        try:
            module = _unwrap(entry(**project.manifest.model.kwargs))
        except (Exception, SystemExit):  # noqa: BLE001 (whatever it is, the plain way below meets it again and reports it)
            module = None
    random_used = not torch.equal(state, torch.random.get_rng_state())
    torch.random.set_rng_state(state)
    plain = isinstance(module, torch.nn.Module) and not isinstance(module, torch.jit.ScriptModule)
    if plain and not random_used:
        try:
            fit = _load_weights(project, module, read, assign=True)
        except StateDoesNotFit:
            pass  # in the plain way too, or else it is the shortcut's fault
        else:
            if not _has_stale_tensors(module):
                return module, fit
    module = _construct_without_meta(project, entry)
    return module, _load_weights(project, module, read, assign=False)


def _has_stale_tensors(module: torch.nn.Module) -> bool:
    """Whether the module reaches a tensor without a value, or a parameter that is none of its own any more.

    Lists, closures, partial functions and plain objects may hold a parameter too; what they hold was
    replaced in the module, and not in them. Reached means: as the garbage collector sees it, short of
    modules, classes and the globals of functions.
    """
    own = {id(one) for one in module.parameters()}
    seen: set[int] = set()
    waiting: list[Any] = [module]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, (type, ModuleType, str, bytes, int, float, torch.dtype)):
            continue
        seen.add(id(found))
        if len(seen) > _MAX_VISITED_OBJECTS:
            return True  # too many to be sure
        if isinstance(found, torch.Tensor):
            if found.is_meta or (isinstance(found, torch.nn.Parameter) and id(found) not in own):
                return True
        elif isinstance(found, FunctionType):
            waiting += [cell.cell_contents for cell in found.__closure__ or () if _is_cell_filled(cell)]
            waiting += [found.__defaults__, found.__kwdefaults__, vars(found)]
        else:
            waiting += gc.get_referents(found)
    return False


def _is_cell_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 (that it can be read is the question)
    except ValueError:
        return False
    return True


def _construct_without_meta(project: Project, entry: Callable[..., Any]) -> torch.nn.Module:
    name, where = _get_entry_name(project), project.field_location("model", "entry")
    try:
        module = _unwrap(entry(**project.manifest.model.kwargs))
    except (Exception, SystemExit) as error:
        raise ModelConstructionFailed(name, where, format_user_frame(error, project.folder)) from error
    if not isinstance(module, torch.nn.Module):
        raise EntryNotModule(name, where, f"{name} returned a {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule) and not module.state_dict():
        why = f"{name} returned a frozen ScriptModule: its weights are constants, and none can be loaded"
        raise StateDoesNotFit(where, why, "return it as it is before torch.jit.freeze()")
    return module.to("cpu")


def _unwrap(made: Any) -> Any:
    """A module without torch.compile and DataParallel around it or its parts, which no exporter follows.

    It computes the same. A LightningModule is told that torch.jit looks at it.
    """
    if not isinstance(made, torch.nn.Module):
        return made
    for one in list(made.modules()):
        if getattr(one, "_compiled_call_impl", None) is not None:  # by Module.compile()
            one._compiled_call_impl = None
        if hasattr(one, "_jit_is_scripting"):  # Lightning's: else torch.jit trips over a `trainer` that is not there
            vars(one)["_jit_is_scripting"] = True
        for name, child in list(one._modules.items()):  # each name of a part that has two
            if child is not None and _unwrap_outermost(child) is not child:
                one._modules[name] = _unwrap_outermost(child)
    return _unwrap_outermost(made)


def _unwrap_outermost(module: torch.nn.Module) -> torch.nn.Module:
    if isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        return module.get_submodule("module")
    compiled = type(module).__name__ == "OptimizedModule"  # torch._dynamo's, which is not imported for this
    return module.get_submodule("_orig_mod") if compiled and "_orig_mod" in module._modules else module


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While open, every parameter that a module registers moves to the meta device; ties stay ties."""
    plain = torch.nn.Module.register_parameter
    moved: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}  # the first keeps its id from being used again

    def register(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None and not param.is_meta and type(param) is torch.nn.Parameter:
            if id(param) not in moved:
                moved[id(param)] = param, torch.nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
            param = moved[id(param)][1]
        plain(self, name, param)

    torch.nn.Module.register_parameter = register  # type: ignore[method-assign]  # restored below
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = plain  # type: ignore[method-assign]  # as it was


def _load_weights(
    project: Project, module: torch.nn.Module, read: checkpoint.Checkpoint, *, assign: bool
) -> checkpoint.Fit:
    """Put the checkpoint's tensors into the module, in the dtypes of the module: copied, or `assign`ed without one."""
    wanted, where = project.manifest.checkpoint, project.field_location("checkpoint")
    everything = module.state_dict(keep_vars=True)
    own = {name: one for name, one in everything.items() if isinstance(one, torch.Tensor)}
    _check_extra_state(where, [name for name in everything if name not in own])
    _check_not_lazy(where, [name for name, one in own.items() if torch.nn.parameter.is_lazy(one)])
    tied = _find_tied_parameters(module)
    fit = checkpoint.fit(
        read.state,
        {name: tuple(one.shape) for name, one in own.items()},
        prefix=wanted.prefix,
        strict=wanted.strict,
        allow_missing=wanted.allow_missing,
        allow_unexpected=wanted.allow_unexpected,
        tied=tied,
        where=where,
    )
    if own and not fit.state:
        raise StateDoesNotFit(where, "no tensor of the checkpoint has a place in the module", "see checkpoint.prefix")
    _check_number_kinds(where, fit.state, own)
    _check_finite(where, fit.state, own)
    state = {name: one.to(own[name].dtype) for name, one in fit.state.items()}
    narrowed = {
        name: f"{name} ({_format_dtype(one)} → {_format_dtype(own[name])})"
        for name, one in fit.state.items()
        if _loses_precision(one, own[name])
    }
    _check_finite(where, {name: state[name] for name in narrowed}, own)  # now: beyond what the dtype holds
    fit = replace(fit, downcast=tuple(narrowed.values()))
    metadata = module_metadata(fit.names, saved_metadata(read.state), saved_metadata(everything))
    _load_state(project, module, state, metadata, assign=assign)
    for group in tied if assign else ():
        # As in a plain load, where the names share memory and the last one written stands.
        loaded = [name for name in state if name in group]
        if loaded:
            shared = module.get_parameter(loaded[-1])
            for name in group:
                parent, _, leaf = name.rpartition(".")
                setattr(module.get_submodule(parent), leaf, shared)
    return fit


def _load_state(
    project: Project,
    module: torch.nn.Module,
    state: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Mapping[str, Any]],
    *,
    assign: bool,
) -> None:
    """Load tensors of the module's names; `metadata` tells each submodule, by its path, the version it was saved by.

    Raises `StateDoesNotFit` for whatever the module's own loading code, a method or a hook, raises.
    """
    noted = OrderedDict(state)
    vars(noted)["_metadata"] = metadata  # where torch looks for it
    try:
        module.load_state_dict(noted, strict=False, assign=assign)
    except (Exception, SystemExit) as error:
        why = f"the module refuses to load it: {format_user_frame(error, project.folder)}"
        hint = "_load_from_state_dict() and the hooks of the module run as in torch; save the weights again from it"
        raise StateDoesNotFit(project.field_location("checkpoint"), why, hint) from error


def _check_extra_state(where: str, names: Sequence[str]) -> None:
    if names:
        why = f"the module keeps state that is no tensor: {', '.join(names)}"
        raise StateDoesNotFit(where, why, "get_extra_state() is not supported; make it buffers")


def _check_not_lazy(where: str, names: Sequence[str]) -> None:
    if names:
        why = f"before its first call the module does not know the shape of: {', '.join(names)}"
        raise StateDoesNotFit(where, why, "use the plain module in place of the Lazy one")


def _check_number_kinds(where: str, state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Refuse what would be taken for something that it is not. Raises `StateDoesNotFit`."""
    complex_ones = [name for name, one in state.items() if one.is_complex() and not own[name].is_complex()]
    if complex_ones:
        why = f"complex in the checkpoint, real in the module: {_join_first(complex_ones)}"
        raise StateDoesNotFit(where, why, "save real tensors, or make the parameters complex")
    integers = [
        f"{name} ({_format_dtype(one)})"
        for name, one in state.items()
        if isinstance(own[name], torch.nn.Parameter) and own[name].is_floating_point() and not _has_fractions(one)
    ]
    if integers:
        why = f"integers in the checkpoint, parameters of floats in the module: {_join_first(integers)}"
        raise StateDoesNotFit(where, why, "quantized weights mean nothing without their scales: save the floats")


def _has_fractions(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _loses_precision(found: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether values may change in the module's dtype."""
    if found.dtype == own.dtype or not found.is_floating_point():
        return False
    if not own.is_floating_point():
        return not own.is_complex()
    theirs, ours = torch.finfo(found.dtype), torch.finfo(own.dtype)
    return theirs.eps < ours.eps or theirs.max > ours.max


def _format_dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_finite(where: str, state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Refuse NaN and infinity; a buffer that is constructed with infinities, as masks are, may have them."""
    bad = [name for name, one in state.items() if not _is_finite(one) and not _is_infinite_mask(one, own[name])]
    if bad:
        raise WeightsNotFinite(where, bad)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether every value is, without a copy: the least and the largest show NaN and infinity."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
        return True
    plain = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    if plain.dtype.itemsize == 1:  # float8 has no order of its own
        plain = plain.float()
    return all(bool(one.isfinite()) for one in plain.aminmax())


def _is_infinite_mask(tensor: torch.Tensor, own: torch.Tensor) -> bool:
    plain_buffer = not isinstance(own, torch.nn.Parameter) and not own.is_meta
    return plain_buffer and bool(own.isinf().any()) and not bool(tensor.isnan().any())


def _find_tied_parameters(module: torch.nn.Module) -> list[frozenset[str]]:
    """Groups of parameter names that are one and the same parameter."""
    names: dict[int, set[str]] = {}
    for name, one in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(one), set()).add(name)
    return [frozenset(group) for group in names.values() if len(group) > 1]


# -- the signature --------------------------------------------------------------------------


def check_inputs(project: Project, module: torch.nn.Module) -> None:
    """Refuse inputs that forward() does not take in this number and order. Raises `InputsDoNotFit`."""
    names = list(project.manifest.inputs)
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    known = [one.name for one in positional]
    takes_more = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    where = project.field_location("inputs")
    takes = f"forward() takes: {', '.join(known)}"
    if len(names) > len(known) and not takes_more:
        raise InputsDoNotFit(where, f"{takes}\nthe manifest gives {len(names)}: {', '.join(names)}", "remove inputs")
    unnamed = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    if unnamed:
        why = f"forward() takes {', '.join(unnamed)} by name only"
        raise InputsDoNotFit(where, why, "inputs are given by position; a small wrapper Module can name them")
    needed = [one.name for one in positional if one.default is one.empty]
    if len(names) < len(needed):
        raise InputsDoNotFit(where, f"{takes}\nwithout an input: {', '.join(needed[len(names) :])}", "add inputs")
    for position, name in enumerate(names):
        if name in known and known.index(name) != position:
            raise InputsDoNotFit(
                project.field_location("inputs", name),
                f"{takes}\n{name} is input {position + 1} of the manifest and parameter {known.index(name) + 1}",
                "list the inputs in the order of forward(), without gaps; a small wrapper Module can reorder them",
            )


def bind_inputs(project: Project, inputs: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """Numpy arrays, in the manifest's order, as the tensors that forward() is called with.

    numpy has no bfloat16: such an input comes as float32 and is rounded here, as the loader does.
    """
    specs = project.manifest.inputs.values()
    tensors = [torch.from_numpy(np.array(one)) for one in inputs]  # a copy: forward() may write into it
    return tuple(
        one.to(torch.bfloat16) if spec.dtype == "bfloat16" else one for one, spec in zip(tensors, specs, strict=True)
    )
