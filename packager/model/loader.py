"""Load the eager module of a project: on the CPU, in eval mode, without gradients.

The module comes from one of three sources. With `model.entry`, the user's code constructs it and the checkpoint holds
the weights. Without, the checkpoint is either a Hugging Face folder, whose class transformers has, or a serialized
module, which brings its own forward(). In each case it is loaded from files whose digests are recorded.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from packager.checkpoint.key_matching import Fit
from packager.checkpoint.locate import HUGGINGFACE_CONFIG_FILE, LocatedCheckpoint, digest_checkpoint
from packager.checkpoint.metadata import About
from packager.checkpoint.state_dict import Checkpoint, read_located
from packager.common.hashing import sha256_file
from packager.errors import InputChanged, WeightsNotFound
from packager.model import huggingface, precision, serialized
from packager.model.construct import construct_module
from packager.model.importing import import_path, resolve_entry
from packager.model.inputs import check_inputs
from packager.model.precision import Conversion
from packager.model.weights import check_finite, join_names
from packager.project import preflight
from packager.project.manifest import Project

# Smaller tensors are copied into `LoadedModel.pristine`, because a call may write to them: a parameter may be a scale
# that the first call sets, and a buffer may be what forward() keeps.
_SMALL_PARAMETER_BYTES = 1 << 16
_LARGE_BUFFER_BYTES = 1 << 24


@dataclass(frozen=True)
class LoadedModel:
    """The eager module with its weights, and where they came from.

    `key_match`, without its tensors, and `weights_key` say which tensors of the checkpoint are in the module, and under
    which key of the file they were; `parameters` counts values. `from_model_weights` are the names that averaged
    weights lacked, and `skipped_checkpoints` the messages about damaged checkpoints of a run, `chosen_checkpoint` the
    folder used instead.
    `pristine` is a copy that shares the large tensors and has never been called, so it holds nothing that a call
    stores in a module; None if the module cannot be copied. `parameter_versions` count the writes to each parameter.
    `conversion` says which dtype the module was converted to, if any.
    """

    module: torch.nn.Module
    key_match: Fit
    weights_key: str
    parameters: int
    checkpoint_sha256: str
    about: About
    from_model_weights: tuple[str, ...] = ()
    skipped_checkpoints: tuple[str, ...] = ()
    chosen_checkpoint: str = ""
    pristine: torch.nn.Module | None = None
    parameter_versions: tuple[int, ...] = ()
    conversion: Conversion | None = None

    def pristine_copy(self) -> torch.nn.Module:
        """Return a module that has never been called, to export; the called one if it cannot be copied.

        Whatever earlier calls left in a module would end up in the artifact, and how often a module is called
        depends on what is in the cache.
        """
        module = None if self.pristine is None else _copy_module(self.pristine)
        return self.module if module is None else module

    def in_float32(self) -> LoadedModel:
        """Return the model with float32 in the place of any bfloat16 that forward() names; the module is changed."""
        conversion = precision.compute_in_float32(self.module)
        if self.pristine is not None:
            precision.compute_in_float32(self.pristine)
        return replace(self, conversion=conversion)

    def changed_parameters(self) -> tuple[str, ...]:
        """Return the names of the parameters that were written to since they were loaded."""
        parameters = self.module.named_parameters()
        return tuple(
            name
            for (name, parameter), version in zip(parameters, self.parameter_versions, strict=True)
            if parameter._version != version
        )

    def notes(self) -> tuple[str, ...]:
        """Return what the user should know about where the weights came from, one sentence each."""
        names_by_note = {
            "missing from the checkpoint, initialized by the constructor": self.key_match.missing,
            "missing from the averaged weights, read from the model's own": self.from_model_weights,
            "rounded to the module's dtype": self.key_match.downcast,
        }
        skipped = [
            f"{message.partition(chr(10))[0]}; using {self.chosen_checkpoint} instead"
            for message in self.skipped_checkpoints
        ]
        names = (f"{note}: {join_names(names)}" for note, names in names_by_note.items() if names)
        return (*skipped, *names, *([] if self.conversion is None else [self.conversion.describe()]))


@contextmanager
def open_model_loader(
    project: Project, located: LocatedCheckpoint | None = None
) -> Iterator[Callable[[], LoadedModel]]:
    """Yield a function that loads the eager module. The user's code stays importable while the block runs.

    `located` are the files of the checkpoint, if `preflight.locate_checkpoint` has already found them. The function
    raises an error of `packager.errors` for an entry that cannot be imported or does not return a Module, for kwargs
    it does not take, and for a checkpoint that cannot be read or does not fit.
    """
    with import_path(project.folder), ExitStack() as stack:

        def load() -> LoadedModel:
            entry = None if project.manifest.model.entry is None else resolve_entry(project)
            model = _load_model(project, entry, located or preflight.locate_checkpoint(project))
            if "torch._dynamo" in sys.modules:  # compiled code computes the same in eager mode, and writes no files
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            return model

        yield load


def _load_model(project: Project, entry: Callable[..., Any] | None, located: LocatedCheckpoint) -> LoadedModel:
    if located.replaced():
        raise InputChanged(project.checkpoint_display_name)
    sha256 = digest_checkpoint(located, sha256_file)  # before anything in it is parsed
    preflight.check_checkpoint_digest(project, sha256)
    module, match, checkpoint = _load_module(project, entry, located)
    conversion = _convert_module(project, module)
    if conversion is None and entry is None:  # transformers has converted it already
        conversion = precision.describe_widened(checkpoint.state)
    module.eval().requires_grad_(False)
    check_inputs(project, module)
    return LoadedModel(
        module=module,
        key_match=replace(match, state={}),  # they would keep the file mapped
        weights_key=checkpoint.key,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        checkpoint_sha256=sha256,
        about=checkpoint.about,
        from_model_weights=checkpoint.from_model_weights,
        skipped_checkpoints=located.skipped_checkpoints,
        chosen_checkpoint=located.head.parent.name,
        pristine=_copy_module(module),
        parameter_versions=tuple(parameter._version for parameter in module.parameters()),
        conversion=conversion,
    )


def _load_module(
    project: Project, entry: Callable[..., Any] | None, located: LocatedCheckpoint
) -> tuple[torch.nn.Module, Fit, Checkpoint]:
    """Return the module, what matched, and what else the checkpoint said, from whichever source the project has."""
    where = project.field_location("checkpoint", "path")
    if entry is not None:
        checkpoint = _read_checkpoint(project, located, where, allow_empty=True)
        module, match = construct_module(project, entry, checkpoint)
        if isinstance(module, torch.jit.ScriptModule):
            module = serialized.SerializedModule(module.eval())
        return module, match, checkpoint
    if HUGGINGFACE_CONFIG_FILE in {file.name for file in located.files}:
        checkpoint = _read_checkpoint(project, located, where)
        module, match = huggingface.load_pretrained(project, located, checkpoint)
    else:
        checkpoint = Checkpoint({}, "", ())  # the weights are part of the program
        module, match = serialized.load_serialized(located, where)
    check_finite(where, match.state, module.state_dict(keep_vars=True))
    return module, match, checkpoint


def _convert_module(project: Project, module: torch.nn.Module) -> Conversion | None:
    """Convert the module as `model.dtype` says. Raises `WeightsNotFinite` if a value exceeds that dtype."""
    conversion = precision.convert_module(module, project.manifest.model.dtype)
    if conversion is not None and conversion.target == "float16":
        state = module.state_dict(keep_vars=True)
        check_finite(project.field_location("model", "dtype"), state, state)
    return conversion


def _read_checkpoint(
    project: Project, located: LocatedCheckpoint, where: str, *, allow_empty: bool = False
) -> Checkpoint:
    settings = project.manifest.checkpoint
    try:
        return read_located(
            located, settings.weights, trust_pickle=settings.trust_pickle, where=where, allow_empty=allow_empty
        )
    except WeightsNotFound as error:
        error.where = project.field_location("checkpoint", "weights")
        raise


def _copy_module(module: torch.nn.Module) -> torch.nn.Module | None:
    """Copy a module but share its large tensors; None if it refuses to be copied."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        return None  # its weights would be copied too
    shared: list[torch.Tensor] = [
        parameter
        for parameter in module.parameters()
        if parameter.nbytes > _SMALL_PARAMETER_BYTES or type(parameter) is not torch.nn.Parameter
    ]
    shared += [buffer for buffer in module.buffers() if buffer.nbytes > _LARGE_BUFFER_BYTES]
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
    except Exception:  # noqa: BLE001 (user-defined objects may raise anything; a build reports what it cannot check)
        return None
