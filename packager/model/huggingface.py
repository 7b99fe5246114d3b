"""Load the module of a Hugging Face folder, without any code of the user's: transformers has the classes.

`config.json` names the architecture. `packager.checkpoint` reads the weights, which runs nothing of what it reads,
and transformers loads them, because it knows which keys older files name differently. Code inside a folder is not
run, and nothing is fetched. The module computes in float32, whatever dtype its weights were saved in (`model.dtype`
converts it later), and keeps no key-value cache: what is packaged is one forward pass.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch

from packager.checkpoint.key_matching import Allowances, Fit, check_key_match
from packager.checkpoint.locate import HUGGINGFACE_CONFIG_FILE, LocatedCheckpoint
from packager.checkpoint.state_dict import Checkpoint
from packager.common.strict_json import check_cost
from packager.errors import ModelConstructionFailed, TransformersMissing
from packager.project.manifest import Project


def load_pretrained(
    project: Project, located: LocatedCheckpoint, checkpoint: Checkpoint
) -> tuple[torch.nn.Module, Fit]:
    """Load the module that the folder's config.json names, with the weights of the checkpoint, on the CPU.

    Returns it with what matched between them: `Fit.state` has the module's own tensors.

    Raises `TransformersMissing`, `ModelConstructionFailed` or `StateDoesNotFit`.
    """
    settings, where = project.manifest.checkpoint, project.field_location("checkpoint", "path")
    try:
        import transformers
    except ImportError:
        raise TransformersMissing(where, project.checkpoint_display_name) from None
    try:
        check_cost((located.folder / HUGGINGFACE_CONFIG_FILE).read_bytes())
        with _offline(transformers):
            config = transformers.AutoConfig.from_pretrained(
                located.folder / HUGGINGFACE_CONFIG_FILE, local_files_only=True, trust_remote_code=False
            )
            if getattr(config, "quantization_config", None) is not None:
                raise ValueError("the weights are quantized according to config.json, which is not supported")
            config.use_cache = False
            module, info = _find_model_class(transformers, config).from_pretrained(
                None,
                config=config,
                state_dict=dict(checkpoint.state),
                dtype=torch.float32,
                attn_implementation="eager",  # config.json may name a kernel to fetch and run
                ignore_mismatched_sizes=True,  # check_key_match reports all of them
                output_loading_info=True,
            )
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise ModelConstructionFailed(project.checkpoint_display_name, where, why) from error
    missing, unexpected = tuple(sorted(info["missing_keys"])), tuple(sorted(info["unexpected_keys"]))
    mismatched = [(name, tuple(ours), tuple(theirs)) for name, theirs, ours in sorted(info["mismatched_keys"])]
    allowances = Allowances(settings.strict, tuple(settings.allow_missing), tuple(settings.allow_unexpected))
    state = module.state_dict()
    check_key_match(
        missing, unexpected, mismatched, allowances,
        checkpoint_names=list(checkpoint.state), module_names=list(state), where=where,
    )  # fmt: skip
    loaded = {name: tensor for name, tensor in state.items() if name not in missing}
    return module.to("cpu"), Fit(loaded, "", missing, unexpected)


def _find_model_class(transformers: Any, config: Any) -> Any:
    """Return the class that was saved, or else the base model of the configuration."""
    for name in getattr(config, "architectures", None) or ():
        candidate = getattr(transformers, str(name), None)
        if isinstance(candidate, type) and issubclass(candidate, transformers.PreTrainedModel):
            return candidate
    return transformers.AutoModel._model_mapping[type(config)]


@contextlib.contextmanager
def _offline(transformers: Any) -> Iterator[None]:
    """Keep transformers off the network and off stderr: `check_key_match` and the notes report what it would print."""
    hub: Any = importlib.import_module("huggingface_hub.constants")
    logging = transformers.utils.logging
    verbosity, progress_bar, offline = logging.get_verbosity(), logging.is_progress_bar_enabled(), hub.HF_HUB_OFFLINE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress_bar:
            logging.enable_progress_bar()
        hub.HF_HUB_OFFLINE = offline
