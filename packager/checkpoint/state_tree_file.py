"""Write a tree as one safetensors file, and read it: its tensors, and its JSON in the header's metadata under `tree`.

Any reader of safetensors reads the tensors (https://huggingface.co/docs/safetensors). The file is written and read here
in a single pass that also computes its SHA-256: no tensor is copied to be written, and no content is trusted before
its digest is verified.
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
    """Write a tree, with `strings` beside it, and flush it to disk; return the file's SHA-256. Raises OSError."""
    return write_tensors(path, encoded.tensors, {"tree": json.dumps(encoded.document), **strings})


def write_tensors(path: Path, tensors_by_name: Mapping[str, torch.Tensor], strings: Mapping[str, str]) -> str:
    """Write contiguous tensors, and `strings` as metadata, and flush the file to disk; return its SHA-256.

    Raises OSError.
    """
    # The widest dtypes first, so that every tensor is aligned to its own item size.
    tensors = sorted(tensors_by_name.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **strings}}
    end = 0
    for name, tensor in tensors:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    parts: list[Any] = [len(head).to_bytes(8, "little"), head]
    for _, tensor in tensors:
        if tensor.numel() > 0:  # torch cannot view an empty tensor as bytes
            parts.append(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    with ThreadPoolExecutor(max_workers=1) as thread, path.open("wb") as stream:
        digest = thread.submit(_digest_parts, parts)
        stream.writelines(parts)
        stream.flush()
        os.fsync(stream.fileno())
        return digest.result()


def write_text_durably(path: Path, text: str) -> str:
    """Write a text and a newline, and flush the file to disk; return its SHA-256. Raises OSError."""
    content = f"{text}\n".encode()
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(content).hexdigest()


def _digest_parts(parts: Sequence[Any]) -> str:
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part)
    return hasher.hexdigest()


def read_tree(path: Path, sha256: str, external_tensors: Mapping[str, torch.Tensor] = MappingProxyType({})) -> Any:
    """Read the tree of a file that must have this digest; `external_tensors` are tensors of the tree from other files.

    Raises `CheckpointDamaged` if the digest differs, or the content is not that of a tree.
    """
    hasher = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            content = bytearray(os.fstat(stream.fileno()).st_size)
            view, filled = memoryview(content), 0
            while count := stream.readinto(view[filled : filled + _CHUNK_BYTES]):
                hasher.update(view[filled : filled + count])
                filled += count
    except OSError as error:
        raise CheckpointDamaged(str(path), error.strerror or str(error)) from None
    if hasher.hexdigest() != sha256:
        raise CheckpointDamaged(str(path), f"SHA-256 saved: {sha256}\nSHA-256 found: {hasher.hexdigest()}")
    try:
        encoded = _parse_tree_file(content)
        return decode_tree(EncodedTree({**encoded.tensors, **external_tensors}, encoded.document))
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointDamaged(str(path), f"{type(error).__name__}: {error}") from None


def _parse_tree_file(content: bytearray) -> EncodedTree:
    data_offset = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data_offset])
    document = json.loads(header.pop("__metadata__")["tree"])
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        # Copied, so that a tensor that lives on does not keep the whole file in memory.
        tensor = torch.empty(end - start, dtype=torch.uint8)
        if end > start:
            tensor.copy_(torch.frombuffer(content, dtype=torch.uint8, count=end - start, offset=data_offset + start))
        tensors[name] = tensor.view(TORCH_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return EncodedTree(tensors, document)
