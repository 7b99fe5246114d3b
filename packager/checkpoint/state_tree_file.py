"""One tree in one safetensors file: its tensors as the file's tensors, its JSON in the header under `tree`.

Any reader of safetensors reads the tensors; https://huggingface.co/docs/safetensors gives the format. The file is
written and read here in one pass each, with its SHA-256 computed beside it: no tensor is copied to
be written, and nothing of a file is believed before its digest is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from packager.checkpoint.state_tree import SAFETENSORS_DTYPES, EncodedTree, decode_tree
from packager.errors import CheckpointDamaged

TORCH_DTYPES = {name: dtype for dtype, name in SAFETENSORS_DTYPES.items()}
_CHUNK_BYTES = 1 << 22


def write_tree(path: Path, encoded: EncodedTree, strings: Mapping[str, str] = MappingProxyType({})) -> str:
    """Write a tree and have the disk keep it; returns the file's SHA-256. Raises OSError."""
    return write_tensors(path, encoded.tensors, {"tree": json.dumps(encoded.document), **strings})


def write_tensors(path: Path, tensors_by_name: Mapping[str, torch.Tensor], strings: Mapping[str, str]) -> str:
    """The same for contiguous tensors, and strings beside them."""
    # The widest first, so that every tensor lies aligned to its own items.
    tensors = sorted(tensors_by_name.items(), key=lambda one: (-one[1].element_size(), one[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **strings}}
    end = 0
    for name, tensor in tensors:
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    parts: list[Any] = [len(head).to_bytes(8, "little"), head]
    for _, tensor in tensors:
        if tensor.numel() > 0:  # torch has no view of an empty one as bytes
            parts.append(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    with ThreadPoolExecutor(max_workers=1) as other, path.open("wb") as stream:
        digest = other.submit(_digest_parts, parts)
        stream.writelines(parts)
        stream.flush()
        os.fsync(stream.fileno())
        return digest.result()


def write_text_durably(path: Path, text: str) -> str:
    """Write a line of text and have the disk keep it; returns the file's SHA-256. Raises OSError."""
    content = f"{text}\n".encode()
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(content).hexdigest()


def _digest_parts(parts: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def read_tree(path: Path, sha256: str, external_tensors: Mapping[str, torch.Tensor] = MappingProxyType({})) -> Any:
    """The tree of a file that has this digest; `elsewhere` are tensors of the tree that it does not hold.

    Raises `CheckpointDamaged` for any other digest.
    """
    found = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            content = bytearray(os.fstat(stream.fileno()).st_size)
            view, filled = memoryview(content), 0
            while count := stream.readinto(view[filled : filled + _CHUNK_BYTES]):
                found.update(view[filled : filled + count])
                filled += count
    except OSError as error:
        raise CheckpointDamaged(str(path), error.strerror or str(error)) from None
    if found.hexdigest() != sha256:
        raise CheckpointDamaged(str(path), f"SHA-256 saved: {sha256}\nSHA-256 found: {found.hexdigest()}")
    try:
        encoded = _parse_tree_file(content)
        return decode_tree(EncodedTree({**encoded.tensors, **external_tensors}, encoded.document))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointDamaged(str(path), f"{type(error).__name__}: {error}") from None


def _parse_tree_file(content: bytearray) -> EncodedTree:
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    document = json.loads(header.pop("__metadata__")["tree"])
    tensors = {}
    for name, one in header.items():
        begin, end = one["data_offsets"]
        # A memory of its own for each: what is restored may live on when the rest of the file does not.
        tensor = torch.empty(end - begin, dtype=torch.uint8)
        if end > begin:
            tensor.copy_(torch.frombuffer(content, dtype=torch.uint8, count=end - begin, offset=start + begin))
        tensors[name] = tensor.view(TORCH_DTYPES[one["dtype"]]).reshape(one["shape"])
    return EncodedTree(tensors, document)
