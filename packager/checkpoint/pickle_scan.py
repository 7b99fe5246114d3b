"""Look into a pickle that cannot be read, or should not be, without running anything of it.

A pickle is a list of operations; pickletools names them one by one and carries none of them out
(https://docs.python.org/3/library/pickletools.html). A class or a function is named by GLOBAL, in one
string, or since protocol 4 by STACK_GLOBAL, in the two strings before it.

torch.save writes protocol 2 as a rule, alone in a ZIP (data.pkl) or, in its old form, as five pickles
in a row, of which the first is a magic number. Without running code, torch reads protocols 2 and 3 only.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # what torch.save's old form begins with, after a few operations
_BEGINNING_BYTES = 24
_MAX_PROTOCOL = 3
_LEGACY_PICKLE_COUNT = 5  # magic number, version, machine, content, keys of the storages that follow
_SAFE_PREFIXES = (
    "torch.",
    "collections.",
    "numpy.",
    "_codecs.",
    "pathlib.",
    "argparse.",
    "builtins.set",
    "__builtin__.set",
)


def find_unsafe_globals(source: Path | IO[bytes], message: str, *, zipped: bool) -> list[str]:
    """The classes and functions that a refused pickle asks for; `message` is what torch says of it.

    Those that tensors are made of are none where it is no file of torch.save: to trust it would not make it one.
    """
    names = set(re.findall(r"GLOBAL ([\w.]+)", message))
    if not zipped and _identify_file(_read_beginning(source)):
        names = {name for name in names if _is_foreign(name)}
    # Where a damaged file ends this, the names found so far are what can be found out.
    with contextlib.suppress(Exception):
        if zipped and _pickle_protocol(source, zipped=zipped) <= _MAX_PROTOCOL:
            return sorted(names | set(torch.serialization.get_unsafe_globals_in_checkpoint(_rewind(source))))
        for pickle in _iterate_pickles(source, zipped=zipped):
            names |= {name for name in _iterate_globals(pickle) if _is_foreign(name)}
    return sorted(names)


def contains_bytearray(path: Path, *, zipped: bool) -> bool:
    """Whether a pickle makes one, which torch's weights-only reading allows, also of so many zeros.

    What is damaged is told by whoever reads it.
    """
    with contextlib.suppress(Exception):  # pickletools and zipfile raise several unrelated classes for damaged bytes
        if zipped:  # the weights beside it may be many times as large, and are not looked at
            content = _read_data_pickle(path)
            return b"bytearray" in content and _references_bytearray(io.BytesIO(content))
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            if whole.find(b"bytearray") >= 0:
                return any(_references_bytearray(stream) for _ in range(_LEGACY_PICKLE_COUNT))
    return False


def explain_load_error(source: Path | IO[bytes], error: Exception, *, zipped: bool) -> str:
    """Why torch did not read it, in a sentence: what the file is instead, or what torch says without its advice."""
    instead = None if zipped else _identify_file(_read_beginning(source))
    if instead:
        return instead
    reason = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
    if reason is None:
        return first_error_line(error)
    if "Unsupported operand" in reason[1] and _pickle_protocol(source, zipped=zipped) > _MAX_PROTOCOL:
        protocol = f"protocol {_pickle_protocol(source, zipped=zipped)}"
        return f"it is pickled in {protocol}, and without running code only protocol 2 is read, which torch.save writes"
    return reason[1]


def first_error_line(error: BaseException) -> str:
    """An error's own words, without what its library adds below them."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


# -- what a file is instead -------------------------------------------------------------------


def _identify_file(begins: bytes) -> str | None:
    """What a file that is no ZIP is; None where it begins as torch.save's old form does, or is too short to tell."""
    if begins[8:9] == b"{":
        return "it is safetensors: call it .safetensors"
    if begins[:1] != b"\x80":
        return "it does not begin as a file of torch.save does"
    if len(begins) == _BEGINNING_BYTES and _LEGACY_MAGIC not in begins:
        return "it is a plain pickle, not a file of torch.save"
    return None


def _pickle_protocol(source: Path | IO[bytes], *, zipped: bool) -> int:
    """The protocol of the pickle; 0 where it cannot be told."""
    with contextlib.suppress(Exception):  # zipfile raises several unrelated classes for damaged bytes
        begins = _read_data_pickle(source) if zipped else _read_beginning(source)
        return begins[1] if begins[:1] == b"\x80" else 0
    return 0


def _read_beginning(source: Path | IO[bytes]) -> bytes:
    with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source) as stream:
        stream.seek(0)
        return stream.read(_BEGINNING_BYTES)


# -- its operations ---------------------------------------------------------------------------


def _iterate_pickles(source: Path | IO[bytes], *, zipped: bool) -> Iterator[IO[bytes]]:
    """A stream that stands before each of the pickles in turn, if the one before was read to its end."""
    if zipped:
        yield io.BytesIO(_read_data_pickle(source))
    elif isinstance(source, Path):
        with source.open("rb") as stream:
            for _ in range(_LEGACY_PICKLE_COUNT):
                yield stream


def _read_data_pickle(source: Path | IO[bytes]) -> bytes:
    """data.pkl, the one pickle in a ZIP of torch.save's."""
    with zipfile.ZipFile(_rewind(source)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _rewind(source: Any) -> Any:
    """The path as it is; a stream before its first byte."""
    if not isinstance(source, Path):
        source.seek(0)
    return source


def _iterate_globals(stream: IO[bytes]) -> Iterator[str]:
    """`module.name` of each class and function that a pickle names, in any protocol."""
    texts: list[Any] = []  # what was pushed, where it is a string
    memo: dict[Any, Any] = {}
    pushed: Any = None
    for opcode, value, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            yield str(value).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(str(text) for text in texts[-2:])
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = pushed
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[value] = pushed
        else:
            pushed = memo.get(value) if opcode.name in ("GET", "BINGET", "LONG_BINGET") else value
            if isinstance(pushed, str):
                texts.append(pushed)


def _is_foreign(name: str) -> bool:
    """Whether a name is of torch.nn, or of no library whose names torch allows."""
    return name.startswith("torch.nn.") or not name.startswith(_SAFE_PREFIXES)


def _references_bytearray(stream: IO[bytes]) -> bool:
    asked = False
    for _, value, _ in pickletools.genops(stream):
        asked |= isinstance(value, str) and value.rpartition(" ")[2] == "bytearray"
    return asked
