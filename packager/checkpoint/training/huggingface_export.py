"""A trained module → a folder that `AutoModel.from_pretrained` loads, with its tokenizer beside it."""

from __future__ import annotations

import os
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import torch

from packager.checkpoint.training.loop_state import unwrap_module
from packager.errors import HuggingFaceExportRefused

# What transformers writes into such a folder.
_EXPORT_PATTERNS = (
    "config.json", "generation_config.json", "model*.safetensors", "model*.safetensors.index.json", "pytorch_model*",
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "preprocessor_config.json", "processor_config.json", "spiece.model", "sentencepiece*",
)  # fmt: skip


class Tokenizer(Protocol):
    """What transformers calls a tokenizer, or a processor: it can save itself."""

    def save_pretrained(self, folder: str, /) -> object: ...


def export_huggingface(
    module: torch.nn.Module, folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None
) -> Path:
    """Write config, weights as safetensors, and tokenizer, in one step; returns the folder.

    The module is one of transformers, or any with `save_pretrained`; DataParallel, compile and averaging around it
    are taken off. An earlier export in the folder is replaced; where anything else is there, it is refused.
    Raises `HuggingFaceExportRefused`.
    """
    target, inner = Path(folder).absolute(), unwrap_module(module)
    save = getattr(inner, "save_pretrained", None)
    if not callable(save):
        why = f"a {type(inner).__qualname__} has no save_pretrained"
        raise HuggingFaceExportRefused(str(folder), why, "only modules of transformers, or made like them, have one")
    occupied = target.exists() and not target.is_dir()
    if occupied or (target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file()):
        why = "it holds something that is no such export"
        raise HuggingFaceExportRefused(str(folder), why, "give a folder that is empty or not there")
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        fresh = scratch / target.name
        save(str(fresh))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(fresh))
        if target.exists():
            _refuse_foreign_files(target, fresh)
            os.rename(target, scratch / "before")
        os.rename(fresh, target)
    except OSError as error:
        raise HuggingFaceExportRefused(
            str(folder), error.strerror or str(error), "make room, or the folder writable"
        ) from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _refuse_foreign_files(target: Path, fresh: Path) -> None:
    """An export is replaced as a whole: what is no export's would be lost with it."""
    new = set(os.listdir(fresh))
    strangers = [
        name
        for name in sorted(os.listdir(target))
        if name not in new and not any(fnmatch(name, one) for one in _EXPORT_PATTERNS)
    ]
    if strangers:
        why = f"it holds what no such export has: {', '.join(strangers[:5])}"
        raise HuggingFaceExportRefused(str(target), why, "move it away, or give another folder")
