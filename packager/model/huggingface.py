"""A Hugging Face folder → the module, without any code of the user's: transformers has the classes.

`config.json` names the architecture. The weights are read by `packager.checkpoint`, which runs nothing of what
it reads, and transformers puts them in: it knows which keys have other names in older files. Code that a folder
brings with itself is not run, and nothing is fetched. The module computes in float32, whatever its weights were
saved in, and keeps no cache of keys and values: it is one forward pass that is packaged.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch

from packager import checkpoint
from packager.checkpoint.key_matching import Allowances, Fit, check_key_match
from packager.checkpoint.locate import HUGGINGFACE_CONFIG_FILE, LocatedCheckpoint
from packager.errors import ModelConstructionFailed, TransformersMissing
from packager.project.manifest import Project


def load_pretrained(
    project: Project, located: LocatedCheckpoint, read: checkpoint.Checkpoint
) -> tuple[torch.nn.Module, Fit]:
    """The module that a folder's config.json names, with its weights.

    Raises `TransformersMissing`, `ModelConstructionFailed` or `StateDoesNotFit`.
    """
    wanted, where = project.manifest.checkpoint, project.field_location("checkpoint", "path")
    try:
        import transformers
    except ImportError:
        raise TransformersMissing(where, project.checkpoint_display_name) from None
    try:
        with _offline(transformers):
            config = transformers.AutoConfig.from_pretrained(
                located.folder / HUGGINGFACE_CONFIG_FILE, local_files_only=True, trust_remote_code=False
            )
            if getattr(config, "quantization_config", None) is not None:
                raise ValueError("config.json says that the weights are quantized, which is not supported")
            config.use_cache = False
            module, info = _find_model_class(transformers, config).from_pretrained(
                None,
                config=config,
                state_dict=dict(read.state),
                dtype=torch.float32,
                attn_implementation="eager",  # config.json may name a kernel to fetch and run
                ignore_mismatched_sizes=True,  # they are refused below, all of them
                output_loading_info=True,
            )
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ModelConstructionFailed(project.checkpoint_display_name, where, text) from error
    missing, unexpected = tuple(sorted(info["missing_keys"])), tuple(sorted(info["unexpected_keys"]))
    wrong = [(name, tuple(ours), tuple(theirs)) for name, theirs, ours in sorted(info["mismatched_keys"])]
    forgiven = Allowances(wanted.strict, tuple(wanted.allow_missing), tuple(wanted.allow_unexpected))
    own = module.state_dict()
    check_key_match(
        missing, unexpected, wrong, forgiven, checkpoint_names=list(read.state), module_names=list(own), where=where
    )
    return module.to("cpu"), Fit({name: own[name] for name in own if name not in missing}, "", missing, unexpected)


def _find_model_class(transformers: Any, config: Any) -> Any:
    """The class that was saved, or else the base model of the configuration."""
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel._model_mapping[type(config)]


@contextlib.contextmanager
def _offline(transformers: Any) -> Iterator[None]:
    """Without the network, and without its report on stderr: what it says there is told by `check`, or by a note."""
    hub: Any = importlib.import_module("huggingface_hub.constants")
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), hub.HF_HUB_OFFLINE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        logging.set_verbosity(before[0])
        if before[1]:
            logging.enable_progress_bar()
        hub.HF_HUB_OFFLINE = before[2]
