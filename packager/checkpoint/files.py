"""Open a checkpoint file without running anything it holds.

A safetensors file cannot hold code. A PyTorch file is a pickle, which can: it is read with
`weights_only=True`, an allow-list of tensors and plain containers
(https://docs.pytorch.org/docs/stable/notes/serialization.html#weights-only), unless the manifest
says that it is trusted. Tensors land on the CPU whatever device they were saved on.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from packager.errors import CheckpointNeedsCode, CheckpointUnreadable
from packager.preflight import check_file


def open_file(path: Path, *, trust_pickle: bool, where: str | None) -> Any:
    """What the file holds: for safetensors a dict of tensors, for PyTorch files whatever was saved.

    Raises `CheckpointNotFound`, `CheckpointUnreadable` or `CheckpointNeedsCode`.
    """
    check_file(path, str(path), where)
    if path.suffix == ".safetensors":
        return _open_safetensors(path, where)
    with path.open("rb") as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    return _open_pytorch(path, trust_pickle=trust_pickle, where=where, zipped=zipped)


def _open_safetensors(path: Path, where: str | None) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, json.JSONDecodeError) as error:
        raise CheckpointUnreadable(str(path), where, f"as safetensors: {error}") from None
    return tensors


def _open_pytorch(path: Path, *, trust_pickle: bool, where: str | None, zipped: bool) -> Any:
    if zipped:
        _refuse_torchscript(path, where)
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=zipped)
    except pickle.UnpicklingError as error:
        names = _names_wanted(path, str(error), zipped=zipped)
        if names:
            raise CheckpointNeedsCode(str(path), where, names) from None
        raise CheckpointUnreadable(str(path), where, _first_line(error)) from None
    except Exception as error:  # noqa: BLE001 (torch and pickle raise a dozen unrelated classes for damaged bytes)
        raise CheckpointUnreadable(str(path), where, _first_line(error)) from None


def _refuse_torchscript(path: Path, where: str | None) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
    except zipfile.BadZipFile:
        raise CheckpointUnreadable(str(path), where, "the file is cut off: its directory is missing") from None
    except Exception as error:  # noqa: BLE001 (zipfile raises several unrelated classes for a damaged directory)
        raise CheckpointUnreadable(str(path), where, f"its directory is damaged: {_first_line(error)}") from None
    if scripted:
        raise CheckpointUnreadable(str(path), where, "it is a TorchScript archive, not a checkpoint")


def _names_wanted(path: Path, message: str, *, zipped: bool) -> list[str]:
    """The classes and functions that a refused pickle asks for."""
    names = set(re.findall(r"GLOBAL ([\w.]+)", message))
    if zipped:
        # Where this fails, the names in the message are what can be found out.
        with contextlib.suppress(Exception):
            names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return sorted(names)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
