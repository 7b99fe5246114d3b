"""Export a trained module as a folder that `AutoModel.from_pretrained` loads, with its tokenizer."""

from __future__ import annotations

import os
import shutil
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import torch

from packager.checkpoint.training.module_weights import unwrap_module
from packager.errors import HuggingFaceExportRefused

# Names of the files that transformers writes into such a folder.
_EXPORT_PATTERNS = (
    "config.json", "generation_config.json", "model*.safetensors", "model*.safetensors.index.json", "pytorch_model*",
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*",
    "preprocessor_config.json", "processor_config.json", "spiece.model", "sentencepiece*",
)  # fmt: skip


class Tokenizer(Protocol):
    """A tokenizer or a processor of transformers, which can save itself."""

    def save_pretrained(self, folder: str, /) -> object:
        """Write the files of the tokenizer into a folder."""


def export_huggingface(
    module: torch.nn.Module, folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None
) -> Path:
    """Write the config, the weights as safetensors, and the tokenizer in one step, and return the folder.

    The module is one of transformers, or any with `save_pretrained`; DataParallel, torch.compile and AveragedModel
    around it are removed. An earlier export in the folder is replaced as a whole.
    Raises `HuggingFaceExportRefused`, also if the folder contains anything but an export.
    """
    target, inner = Path(folder).absolute(), unwrap_module(module)
    save = getattr(inner, "save_pretrained", None)
    if not callable(save):
        why = f"{type(inner).__qualname__} has no save_pretrained()"
        raise HuggingFaceExportRefused(str(folder), why, "export a module of transformers, or one with that method")
    is_export = target.is_dir() and (not any(target.iterdir()) or (target / "config.json").is_file())
    if target.exists() and not is_export:
        why = "it contains something other than an export"
        raise HuggingFaceExportRefused(str(folder), why, "choose an empty or a new folder")
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        export = scratch / target.name
        save(str(export))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(export))
        if target.exists():
            _refuse_foreign_files(target, export)
            target.rename(scratch / "before")
        export.rename(target)
    except OSError as error:
        hint = "free some space, or make the folder writable"
        raise HuggingFaceExportRefused(str(folder), error.strerror or str(error), hint) from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def _refuse_foreign_files(target: Path, export: Path) -> None:
    """Refuse to replace a folder with files that do not belong to an export: they would be lost."""
    names = {path.name for path in target.iterdir()} - {path.name for path in export.iterdir()}
    foreign = sorted(name for name in names if not any(fnmatch(name, pattern) for pattern in _EXPORT_PATTERNS))
    if foreign:
        why = f"it contains files that do not belong to an export: {', '.join(foreign[:5])}"
        raise HuggingFaceExportRefused(str(target), why, "move them away, or choose a different folder")
