"""Look into a pickle that cannot or should not be loaded, without executing any of it.

A pickle is a list of operations; pickletools names them one by one and carries none of them out
(https://docs.python.org/3/library/pickletools.html). A class or function is named by GLOBAL, in one string, or since
protocol 4 by STACK_GLOBAL, in the two strings before it.

torch.save writes protocol 2 by default: one pickle in a ZIP archive (data.pkl) or, in its legacy format, five pickles
in a row, of which the first is a magic number. With `weights_only=True`, torch.load reads protocols 2 and 3 only.

In this module `source` is a path, or a stream of the part of a file that torch.save wrote; `zipped` says whether it is
a ZIP archive.
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

_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # follows the first few operations of the legacy format
_HEAD_BYTES = 24
_MAX_PROTOCOL = 3
_MAX_NAME_CHARACTERS = 1000
_RUN_BYTES = 4000  # without whitespace: memo indexes and lengths are whitespace often enough to make it rare
_UNSUPPORTED = ("GET", "PUT")  # by torch, like everything above `_MAX_PROTOCOL`
_LEGACY_PICKLE_COUNT = 5  # magic number, version, system, content, keys of the storages that follow
_SAFE_PREFIXES = (
    "torch.", "collections.", "numpy.", "_codecs.", "pathlib.", "argparse.", "builtins.set", "__builtin__.set",
)  # fmt: skip


def find_unsafe_globals(source: Path | IO[bytes], message: str, *, zipped: bool) -> list[str]:
    """Return the classes and functions that a refused pickle needs, sorted; `message` is torch's error.

    Classes that tensors consist of are left out if torch.save did not write the file, because trusting it would not
    make it readable.
    """
    names = set(re.findall(r"GLOBAL ([\w.]+)", message))
    if not zipped and _identify_file(_read_head(source)):
        names = {name for name in names if _is_foreign(name)}
    # If the file is damaged, the names up to the damage are all that can be listed.
    with contextlib.suppress(Exception):
        if zipped and _pickle_protocol(source, zipped=zipped) <= _MAX_PROTOCOL:
            return sorted(names | set(torch.serialization.get_unsafe_globals_in_checkpoint(_rewind(source))))
        for pickle in _iterate_pickles(source, zipped=zipped):
            names |= {name for name in _iterate_globals(pickle) if _is_foreign(name)}
    return sorted(names)


def contains_bytearray(source: Path | IO[bytes], *, zipped: bool) -> bool:
    """Tell whether a pickle creates a bytearray, which `weights_only=True` allows, even one of any number of zeros.

    Returns False for a damaged file; loading it reports the damage.
    """
    with contextlib.suppress(Exception):  # pickletools and zipfile raise several unrelated classes for damaged bytes
        if zipped:  # only the pickle: the weights beside it may be many times as large
            content = _read_data_pickle(source)
            return b"bytearray" in content and _references_bytearray(io.BytesIO(content))
        assert isinstance(source, Path)  # only a whole file may have no archive around its pickle
        with source.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            if mapped.find(b"bytearray") >= 0:
                return any(_references_bytearray(stream) for _ in range(_LEGACY_PICKLE_COUNT))
    return False


def count_operations(source: Path | IO[bytes], limit: int, *, zipped: bool) -> int:
    """Count the operations of a file's pickles, no further than one beyond `limit`, and up to any damage."""
    count = 0
    with contextlib.suppress(Exception):  # pickletools and zipfile raise several unrelated classes for damaged bytes
        for stream in _iterate_pickles(source, zipped=zipped):
            for _ in pickletools.genops(stream):
                count += 1
                if count > limit:
                    return count
    return count


def has_unusable_call(source: Path | IO[bytes], *, zipped: bool) -> bool:
    """Tell whether a pickle names something of absurd length, or calls a value that is no function.

    torch refuses both, and puts the name or value into its message, which it searches with a regular expression in
    time quadratic in the length: hours for 1 MB. Returns False for other damage, which loading it reports.
    """
    with contextlib.suppress(Exception):  # zipfile raises several unrelated classes for damaged bytes
        if zipped and max(map(len, _read_data_pickle(source).split()), default=0) < _RUN_BYTES:
            return False
        return any(_has_unusable_call(stream) for stream in _iterate_pickles(source, zipped=zipped))
    return False


def explain_load_error(source: Path | IO[bytes], error: Exception, *, zipped: bool) -> str:
    """Return why torch.load failed, as one sentence: what the file is instead, or torch's reason without its advice."""
    description = None if zipped else _identify_file(_read_head(source))
    if description:
        return description
    reason = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
    if reason is None:
        return first_error_line(error)
    protocol = _pickle_protocol(source, zipped=zipped)
    if "Unsupported operand" in reason[1] and protocol > _MAX_PROTOCOL:
        return f"it is pickled in protocol {protocol}; without running code, only torch.save's protocol 2 can be read"
    return reason[1]


def first_error_line(error: BaseException) -> str:
    """Return the first line of an error's message; libraries append advice below it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


# -- file formats -----------------------------------------------------------------------------


def _identify_file(head: bytes) -> str | None:
    """Describe a file that is not a ZIP archive; None if it may be torch.save's legacy format."""
    if head[8:9] == b"{":
        return "it is safetensors: call it .safetensors"
    if head[:1] != b"\x80":
        return "it does not start like a file of torch.save"
    if len(head) == _HEAD_BYTES and _LEGACY_MAGIC not in head:
        return "it is a plain pickle, not a file of torch.save"
    return None


def _pickle_protocol(source: Path | IO[bytes], *, zipped: bool) -> int:
    """Return the protocol of the pickle; 0 if it is unknown."""
    with contextlib.suppress(Exception):  # zipfile raises several unrelated classes for damaged bytes
        head = _read_data_pickle(source) if zipped else _read_head(source)
        return head[1] if head[:1] == b"\x80" else 0
    return 0


def _read_head(source: Path | IO[bytes]) -> bytes:
    with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source) as stream:
        stream.seek(0)
        return stream.read(_HEAD_BYTES)


# -- operations -------------------------------------------------------------------------------


def _iterate_pickles(source: Path | IO[bytes], *, zipped: bool) -> Iterator[IO[bytes]]:
    """Yield a stream at the start of each pickle; the caller reads one to its end before it asks for the next."""
    if zipped:
        yield io.BytesIO(_read_data_pickle(source))
    elif isinstance(source, Path):
        with source.open("rb") as stream:
            for _ in range(_LEGACY_PICKLE_COUNT):
                yield stream


def _read_data_pickle(source: Path | IO[bytes]) -> bytes:
    """Return data.pkl, the only pickle in a ZIP archive of torch.save."""
    with zipfile.ZipFile(_rewind(source)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _rewind(source: Any) -> Any:
    """Return the source, with a stream set to its first byte."""
    if not isinstance(source, Path):
        source.seek(0)
    return source


def _iterate_globals(stream: IO[bytes]) -> Iterator[str]:
    """Yield `module.name` of each class and function that a pickle names, in any protocol."""
    strings: list[str] = []  # those pushed onto the stack
    memo: dict[Any, Any] = {}
    pushed: Any = None
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = pushed
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = pushed
        else:
            pushed = memo.get(argument) if opcode.name in ("GET", "BINGET", "LONG_BINGET") else argument
            if isinstance(pushed, str):
                strings.append(pushed)


def _has_unusable_call(stream: IO[bytes]) -> bool:
    """Follow the stack of a pickle in torch's protocols, on which True stands for a class or function."""
    stack: list[bool | None] = []  # None is a mark
    memo: dict[Any, bool | None] = {}
    start = stream.tell()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            start = stream.tell()
            if opcode.proto > _MAX_PROTOCOL or opcode.name in _UNSUPPORTED:
                return False  # torch stops here, with a short message
            if opcode.name == "GLOBAL" and len(str(argument)) > _MAX_NAME_CHARACTERS:
                return True
            if opcode.name in ("REDUCE", "NEWOBJ") and not stack[-2]:
                return True
            if opcode.name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif opcode.name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            else:
                _apply(opcode, stack)
    except (ValueError, LookupError):
        stream.seek(start)  # pickletools cannot read a name that is not ASCII, and torch can
        return stream.read(1) == b"c" and len(stream.readline() + stream.readline()) > _MAX_NAME_CHARACTERS
    return False


def _apply(opcode: pickletools.OpcodeInfo, stack: list[bool | None]) -> None:
    """Apply the effect of an operation on the stack. Raises LookupError if the stack is too short.

    A persistent id counts as a function: in torch's legacy format, it may be the class of a module.
    """
    operands = [operand.name for operand in opcode.stack_before]
    if "mark" in operands:
        while stack.pop() is not None:
            pass
        operands = operands[: operands.index("mark")]
    for _ in operands:
        stack.pop()
    for result in opcode.stack_after:
        stack.append(None if result.name == "mark" else opcode.name in ("GLOBAL", "BINPERSID"))


def _is_foreign(name: str) -> bool:
    """Tell whether a name is in torch.nn, or in no library whose names torch allows."""
    return name.startswith("torch.nn.") or not name.startswith(_SAFE_PREFIXES)


def _references_bytearray(stream: IO[bytes]) -> bool:
    """Tell whether a pickle names bytearray; reads the pickle to its end."""
    arguments = [argument for _, argument, _ in pickletools.genops(stream) if isinstance(argument, str)]
    return any(argument.rpartition(" ")[2] == "bytearray" for argument in arguments)
