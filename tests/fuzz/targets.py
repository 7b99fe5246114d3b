"""The parsers of files that others wrote, each as a function from bytes to nothing.

A target may raise the errors that its parser documents. Everything else is a find: another exception, a change of
sealed bytes that is accepted (`ChangeAccepted`), more than two seconds, or much memory.
"""

import gzip
import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import packager
from packager import checkpoint
from packager.bundle import layout
from packager.bundle.evidence import EvidenceMalformed, parse_reference_cases
from packager.bundle.files import open_bundle
from packager.bundle.fingerprint import SumsMalformed, compute_fingerprint, format_lines, format_sums, parse_sums
from packager.bundle.names import describe_path_problem
from packager.bundle.onnx_wire import WeightsUnsafe, find_external_tensors
from packager.bundle.seal import check_bundle
from packager.cli.describe import inspect
from packager.common import deterministic_zip
from packager.common.array_files import read_arrays
from packager.errors import IntegrityFailed, PackagerError
from packager.project.manifest import load_manifest
from packager.runtime.exported_program_archive import ROOT, ArchiveUnsafe, check_archive
from packager.runtime.loader import Bundle
from packager.serving.chunks import ChunkDecoder
from packager.serving.compression import decompress
from packager.serving.decoding import RequestDecoder
from packager.serving.encoding import ResponseEncoder
from packager.serving.http_head import parse_head
from packager.serving.messages import Rejected
from packager.serving.shared_memory import SharedMemory
from packager.serving.signature import read_signature
from packager.signature.statement import parse_signature
from packager.signature.verify import Trust, check_signature


class NotWritten(Exception):
    """The path is none that a file system or a bundle takes, so that there is nothing to test."""


DOCUMENTED = (PackagerError, EvidenceMalformed, SumsMalformed, WeightsUnsafe, ArchiveUnsafe, Rejected, NotWritten)
"""What a target may raise."""

DATA, DATA_BYTES = "model.onnx_data", 4096
"""The data file of the ONNX seeds."""


_HEAD = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\n"
_JSON = b'{"inputs":[{"name":"x","shape":[2,4],"datatype":"FP32","data":[1,2,3,4,5.5,6,7,8e1]}]}'
_BINARY = (
    b'{"id":"a","inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}],'
    b'"outputs":[{"name":"output_0","parameters":{"binary_data":true}}]}'
)
_SQUEEZED = gzip.compress(_JSON, mtime=0)
REQUESTS = (
    _HEAD + b"Content-Length: %d\r\n\r\n" % len(_JSON) + _JSON,
    _HEAD + b"Inference-Header-Content-Length: %d\r\n\r\n" % len(_BINARY) + _BINARY + bytes(16),
    _HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(_JSON) + _JSON + b"\r\n0\r\n\r\n",
    _HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(_SQUEEZED) + _SQUEEZED,
)
"""Requests to the server for the model of the world."""


class ChangeAccepted(AssertionError):
    """A change of sealed bytes was accepted."""


@dataclass(frozen=True)
class World:
    """What the targets share: an intact bundle, its files by path, its signature, and folders to write to."""

    bundle: Path
    files: dict[str, bytes]
    loaded: Bundle
    archive: bytes
    signature: bytes
    trust: Trust
    work: Path


@dataclass(frozen=True)
class Target:
    """A parser with the contents that are mutated, each of which it accepts."""

    name: str
    seeds: tuple[bytes, ...]
    check: Callable[[World, bytes], None]


# -- bundles ------------------------------------------------------------------------------------


def check_archive_of_bundle(world, content):
    """Open an archive as a bundle: every change is refused."""
    path = world.work / "net.zip"
    path.write_bytes(content)
    _check_sealed(path, changed=content != world.archive)


def check_folder(world, content):
    """Write one file of a folder, after a line with its path: every change is refused."""
    path, content = _split(content)
    if path is None or path == layout.SIGNATURE:
        raise NotWritten
    with _Written(world, {path: content}):
        _check_sealed(world.bundle, changed=world.files.get(path) != content)


def check_resealed(world, content):
    """Write a record and the seal that an attacker would write: nothing that reads it crashes."""
    path, content = _split(content)
    if path not in world.files or path in layout.UNSEALED_FILES or path.endswith((".onnx", ".ts")):
        raise NotWritten
    sums = {**parse_sums(world.files[layout.SUMS].decode()), path: hashlib.sha256(content).hexdigest()}
    text = format_sums(sums)
    seal = {layout.SUMS: text.encode(), layout.FINGERPRINT: f"{compute_fingerprint(text)}\n".encode()}
    with _Written(world, {path: content, **seal}):
        report = packager.verify(world.bundle, parity=False)
        report.as_json()
        inspect(world.bundle)
        packager.load(world.bundle, fallback=False, selftest=True, threads=1)


def check_sums(_world, content):
    """Parse SHA256SUMS: what is accepted is exactly what would be written."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise SumsMalformed("it is not UTF-8") from None
    if format_lines(parse_sums(text)) != text:
        raise ChangeAccepted("SHA256SUMS has a second spelling")


def check_model_signature(world, content):
    """Check model.sig: what is accepted says the same."""
    sums = world.files[layout.SUMS].decode()
    check_signature(content, parse_sums(sums), compute_fingerprint(sums), world.trust, "bundle")
    if parse_signature(content) != parse_signature(world.signature):
        raise ChangeAccepted("a changed signature is accepted")


def check_parity_record(world, content):
    """Parse parity.json with the tensors that belong to it."""
    parse_reference_cases(content, world.files[layout.GOLDEN])


def check_golden(world, content):
    """Parse golden.safetensors with the record that belongs to it."""
    parse_reference_cases(world.files[layout.PARITY], content)


def check_onnx_wire(_world, content):
    """Find external weights: those that are accepted lie inside of the data."""
    for tensor in find_external_tensors(content, DATA, DATA_BYTES):
        if not 0 <= tensor.offset <= tensor.offset + tensor.length <= DATA_BYTES:
            raise ChangeAccepted(f"{tensor} is outside of the data")


def check_onnx_inspect(world, content):
    """Describe an ONNX file."""
    inspect(_write(world, "model.onnx", content))


def check_exported_program(_world, content):
    """Check the program of a .pt2 before torch reads it."""
    stream = io.BytesIO()
    deterministic_zip.write_zip(stream, [(f"{ROOT}/models/model.json", len(content), [content])])
    check_archive(stream)


# -- checkpoints, manifests, inputs -------------------------------------------------------------


def check_safetensors(world, content):
    """Read and describe a safetensors file."""
    _read_and_inspect(_write(world, "best.safetensors", content))


def check_torch_file(world, content):
    """Read and describe a file of torch.save."""
    _read_and_inspect(_write(world, "best.pt", content))


def check_dcp_metadata(world, content):
    """Read a folder of torch.distributed.checkpoint with this .metadata."""
    _write(world, "dcp-metadata/.metadata", content)
    checkpoint.read(world.work / "dcp-metadata")


def check_dcp_chunks(world, content):
    """Read a folder of torch.distributed.checkpoint with this file of chunks."""
    _write(world, "dcp-chunks/__0_0.distcp", content)
    checkpoint.read(world.work / "dcp-chunks")


def check_piece_index(world, content):
    """Read tensors in pieces with this index."""
    checkpoint.read(_write(world, "pieces/model.pieces.json", content))


def check_shard_index(world, content):
    """Read shards with this index."""
    checkpoint.read(_write(world, "shards/model.safetensors.index.json", content))


def check_manifest(world, content):
    """Read a manifest."""
    load_manifest(_write(world, "package.yaml", content))


def check_npz(world, content):
    """Run the bundle on the arrays of an .npz."""
    world.loaded.run(read_arrays(_write(world, "x.npz", content), "x.npz"))


# -- helpers ------------------------------------------------------------------------------------


def _check_sealed(path, *, changed):
    with open_bundle(path) as files:
        checked = check_bundle(files, models=True, evidence=True)
    intact = checked.seal.is_intact and checked.config is not None and checked.config_problem is None
    if changed and intact:
        raise ChangeAccepted("a changed bundle is accepted")
    if not changed and not intact:
        raise AssertionError("an intact bundle is refused")
    if not intact:
        raise IntegrityFailed(str(path), checked.seal.describe())


def _read_and_inspect(path):
    try:
        inspect(path)
    finally:
        checkpoint.read(path)


def _write(world, name, content):
    path = world.work / name
    path.write_bytes(content)
    return path


def check_request(world, content):
    """Receive a request as the server does, run it and encode the answer; what a decoder remembers changes nothing."""
    head_bytes, separator, body = content.partition(b"\r\n\r\n")
    head = parse_head(head_bytes + separator)
    if head.length < 0:
        decoder, buffer = ChunkDecoder(), bytearray(body)
        if not decoder.feed(buffer):
            raise NotWritten  # there is more to come
        body = bytes(decoder.body)
    body = decompress(body, head.headers.get(b"content-encoding", b""), 1 << 20)
    signature = read_signature(world.loaded.config)
    outcomes = []
    for decoder in (RequestDecoder(signature, SharedMemory(enabled=False)), _remembering(signature)):
        try:
            request = decoder.decode(body, head.headers.get(b"inference-header-content-length"))
            outputs = world.loaded.run(request.inputs)
            parts, _ = ResponseEncoder(signature, "1.0.0").encode(request, outputs)
            outcomes.append(b"".join(parts))
        except Rejected:  # of several faults, either may be named
            outcomes.append(None)
    if outcomes[0] != outcomes[1]:
        raise ChangeAccepted(f"{outcomes[0]!r} became {outcomes[1]!r}")


def _remembering(signature):
    """Return a decoder that has seen the requests that are mutated."""
    decoder = RequestDecoder(signature, SharedMemory(enabled=False))
    for content in REQUESTS:
        head, _, body = content.partition(b"\r\n\r\n")
        header = re.search(rb"Inference-Header-Content-Length: (\d+)", head)
        if b"chunked" not in head and b"gzip" not in head:
            decoder.decode(body, header and header[1])
    return decoder


def _split(content):
    """Return the path in the first line, None if no bundle may have it, and the rest."""
    line, _, rest = content.partition(b"\n")
    try:
        path = line.decode()
    except UnicodeDecodeError:
        return None, rest
    return (None if describe_path_problem(path) else path), rest


class _Written:
    """Files of the bundle with other contents, until the block ends. Raises `NotWritten`."""

    def __init__(self, world, contents):
        self.world, self.contents = world, contents
        self.folders = []

    def __enter__(self):
        try:
            for path, content in self.contents.items():
                target = self.world.bundle / path
                self.folders += [folder for folder in target.parents if not folder.exists()]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        except OSError:  # a file where a folder is, or the other way round
            self.__exit__()
            raise NotWritten from None

    def __exit__(self, *_exception):
        for path in self.contents:
            target = self.world.bundle / path
            if path in self.world.files:
                target.write_bytes(self.world.files[path])
            elif target.is_file():
                target.unlink()
        for folder in self.folders:
            if folder.exists():
                folder.rmdir()
