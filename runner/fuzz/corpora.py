"""Write the files that the fuzzers start from, a folder for each: `python runner/fuzz/corpora.py FOLDER`."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib import format as npy_format
from safetensors.numpy import save

from packager.bundle.fingerprint import compute_fingerprint, format_sums
from packager.common.deterministic_zip import write_zip

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = sorted((ROOT / "tests/compat/0.1.0").glob("*.zip"))
DTYPES = ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", ">f4", "<c8", "<U3", "S3"]


def main() -> None:
    """Write all corpora."""
    folder = Path(sys.argv[1])
    corpora = {
        "npy": npy(), "npz": npz(), "safetensors": safetensors(), "json": documents(), "json_arrays": json_arrays(),
        "archive": archives(), "seal": seals(), "config": configs(), "executable": executables(), "http": requests(),
        "infer": infer_bodies(), "onnx_wire": models(), "evidence": evidence(),
    }  # fmt: skip
    for name, contents in corpora.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for content in contents:
            (folder / name / hashlib.sha1(content, usedforsecurity=False).hexdigest()).write_bytes(content)


def npy() -> Iterator[bytes]:
    """Yield arrays of all dtypes, orders and versions of the format."""
    arrays = [np.zeros((2, 3), dtype) for dtype in DTYPES]
    arrays += [np.float32(1.5), np.zeros((0, 4)), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.zeros((1,) * 8)]
    arrays.append(np.zeros(2, [("a", "<f4"), ("b", "<i8", (2,))]))
    for array in arrays:
        for version in ((1, 0), (2, 0), (3, 0)):
            stream = io.BytesIO()
            npy_format.write_array(stream, np.asanyarray(array), version=version)
            yield stream.getvalue()


def npz() -> Iterator[bytes]:
    """Yield archives of arrays, stored and deflated."""
    arrays = {
        "image": np.linspace(0, 1, 4, dtype=np.float32).reshape(2, 2), "ids": np.arange(6).reshape(2, 3),
        "mask": np.array(True), "half": np.ones(3, np.float16), "brain": np.ones(3, np.float32),
        "byte": np.arange(9, dtype=np.uint8), "wide": np.ones(1, np.uint64), "double": np.ones(2),
    }  # fmt: skip
    for write in (np.savez, np.savez_compressed):
        for names in (list(arrays), ["image"], []):
            stream = io.BytesIO()
            write(stream, **{name: arrays[name] for name in names})
            yield stream.getvalue()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("image.npy", "w", force_zip64=True) as entry:
            entry.write(next(npy()))
        archive.writestr("other.txt", "x")
    yield stream.getvalue()


def safetensors() -> Iterator[bytes]:
    """Yield files of tensors, and the evidence of bundles."""
    yield save({})
    yield save({"a": np.zeros((2, 3), np.float32), "b": np.zeros((0,), np.int64)}, metadata={"format": "np"})
    yield save({str(index): np.zeros(2, dtype) for index, dtype in enumerate(DTYPES[:12])})
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    yield struct.pack("<Q", len(header)) + header + bytes(4)
    for bundle in BUNDLES:
        yield from files(bundle, "evidence/golden.safetensors")


def evidence() -> Iterator[bytes]:
    """Yield records of cases with their tensors: the size of the record, the record, the tensors."""
    for rule in ("argmax", "top-2", "rank", "threshold 0.5"):
        tensors, outputs = {"0/input/x": np.ones((2, 3))}, {}
        for dtype in DTYPES[:12]:
            tensors[f"0/output/{dtype}"] = np.arange(6).reshape(2, 3).astype(dtype)
            outputs[dtype] = {"atol": 1e-6, "rtol": 0.0}
        tensors["0/output/<f4"][0, 1] = np.nan
        case = {"name": "0", "golden": True, "outputs": outputs, "sizes": {"batch": 2}}
        decisions = {dtype: {"rule": rule, "axis": -1, "tie": 0.1} for dtype in DTYPES[7:12]}
        record = json.dumps({"cases": [case], "decisions": decisions}).encode()
        yield struct.pack("<I", len(record)) + record + save(tensors)


def files(bundle: Path, *names: str) -> Iterator[bytes]:
    """Yield files of a bundle that are not too large to mutate."""
    with zipfile.ZipFile(bundle) as archive:
        for name in set(names) & set(archive.namelist()):
            if archive.getinfo(name).file_size < 200_000:
                yield archive.read(name)


def documents() -> Iterator[bytes]:
    """Yield JSON texts: of all kinds of values, and the records of bundles."""
    yield json.dumps([None, True, -1, 2**64 - 1, 2**70, 1e-7, 1.5, "ü\U0001f600\x01", {"a": [], "b": {}}]).encode()
    yield b'["\\u00e9\\ud83d\\ude00\\ud800", 1E400, -0.0, 0.1e+2, "\xc3\xa9"]'
    yield b"[" * 40 + b"]" * 40
    yield b'{"a": NaN, "a": Infinity}'
    for bundle in BUNDLES:
        yield from files(bundle, "config.json", "evidence/parity.json", "evidence/build.json")


def json_arrays() -> Iterator[bytes]:
    """Yield arrays as nested lists."""
    arrays = {
        "image": [[0.5, 1], [2, 3e-5]], "ids": [[1, 2, 3], [4, 5, 6]], "mask": True, "half": [1.5, 65504],
        "brain": [1.0], "byte": [0, 255], "wide": [2**64 - 1], "double": [1e300],
    }  # fmt: skip
    yield json.dumps(arrays).encode()
    yield json.dumps({**arrays, "ids": [[], []], "mask": 1}).encode()
    yield json.dumps({**arrays, "ids": [[1], [2, 3]], "byte": [256], "half": [None], "brain": ["nan"]}).encode()


def configs() -> Iterator[bytes]:
    """Yield the config.json of bundles, as they are and with other dtypes and dims."""
    for bundle in BUNDLES:
        for content in files(bundle, "config.json"):
            yield content
            config = json.loads(content)
            config["inputs"][0] |= {"dtype": "bfloat16", "shape": ["rows", None, 3], "range": [0, 1.5]}
            config["dims"] = {"rows": {"min": 2, "max": 64}}
            yield json.dumps(config).encode()


def small_archive() -> bytes:
    """Return a bundle with the least that one has."""
    contents = {"README.md": b"x\n", "assets/a.txt": b"\n", "config.json": next(configs()), "model.onnx": b"\x08\x08"}
    sums = format_sums({name: hashlib.sha256(content).hexdigest() for name, content in contents.items()})
    contents |= {"SHA256SUMS": sums.encode(), "FINGERPRINT": f"{compute_fingerprint(sums)}\n".encode()}
    stream = io.BytesIO()
    write_zip(stream, ((name, len(content), [content]) for name, content in sorted(contents.items())))
    return stream.getvalue()


def archives() -> Iterator[bytes]:
    """Yield archives of bundles."""
    yield small_archive()
    for contents in ({}, {"a": b""}, {"SHA256SUMS": b"", "config.json": b"{}"}, {"é/a b": b"1", "model.sig": b"{}"}):
        stream = io.BytesIO()
        write_zip(stream, ((name, len(content), [content]) for name, content in sorted(contents.items())))
        yield stream.getvalue()


def seals() -> Iterator[bytes]:
    """Yield texts of SHA256SUMS."""
    digest = hashlib.sha256(b"{}").hexdigest()
    yield format_sums({"config.json": digest, "assets/labels.txt": digest}).encode()
    for bundle in BUNDLES:
        yield from files(bundle, "SHA256SUMS")


def executables() -> Iterator[bytes]:
    """Yield trailers with an archive behind them, as executable.cpp expects them."""
    for machine in (62, 183):
        for archive in archives():
            numbers = struct.pack("<QQQQQII", 64, 32, 16, len(archive), 65536, machine, 0)
            trailer = b"torch-packager\0\1" + numbers + bytes(64) + b"1.31.1".ljust(32, b"\0")
            yield trailer + bytes(64) + bytes(32) + archive


def requests() -> Iterator[bytes]:
    """Yield requests: with bodies of known and unknown length, compressed, and with what clients send besides."""
    body = b'{"inputs": []}' * 4
    post = b"POST /v2/models/a/infer HTTP/1.1\r\nHost: a\r\n"
    yield b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\n\r\n"
    yield b"GET http://user@a:80/v2/%c3%a9?x=1 HTTP/1.0\r\nConnection: keep-alive\r\nHost: a\r\n\r\n"
    yield post + b"Content-Length: 3\r\nExpect: 100-continue\r\nAccept-Encoding: gzip, deflate\r\n\r\nabc"
    yield post + b"Inference-Header-Content-Length: 12\r\nContent-Length: 4\r\ntraceparent: 00-a-b-01\r\n\r\nabcd"
    for head in (b"", b"Content-Encoding: gzip\r\n", b"Content-Encoding: deflate\r\n"):
        content = {b"": body, b"Content-Encoding: gzip\r\n": gzip.compress(body, mtime=0)}.get(
            head, zlib.compress(body)
        )
        yield post + head + b"Content-Length: %d\r\n\r\n" % len(content) + content
        chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in (content[:9], content[9:]))
        yield post + head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nTrailer: a\r\n\r\n"


def infer_bodies() -> Iterator[bytes]:
    """Yield bodies of inference requests: the length of the JSON in two bytes, then the JSON, then tensors."""
    tensor = {"name": "image", "shape": [2, 2], "datatype": "FP32"}
    ids = {"name": "ids", "shape": [2, 3], "datatype": "INT64", "data": [[1, 2, 3], [4, 5, 6]]}
    for text, content in (
        ({"id": "1", "inputs": [{**tensor, "data": [0, 0.5, 1, 2e-5]}, ids]}, b""),
        ({"inputs": [{**tensor, "parameters": {"binary_data_size": 16}}, ids]}, bytes(16)),
        ({"inputs": [ids], "outputs": [{"name": "logits", "parameters": {"classification": 3}}]}, b""),
        ({"inputs": [tensor], "parameters": {"binary_data_output": True, "priority": 1}}, bytes(16)),
    ):
        encoded = json.dumps(text).encode()
        yield struct.pack("<H", len(encoded)) + encoded + content


def models() -> Iterator[bytes]:
    """Yield ONNX models with weights inside and outside."""
    from onnx import TensorProto, helper

    for external in (False, True):
        weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], bytes(48), raw=True)
        if external:
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            for key, value in {"location": "model.onnx_data", "offset": "0", "length": "48"}.items():
                weight.external_data.add(key=key, value=value)
        small = helper.make_tensor("b", TensorProto.INT64, [2], [1, 2])
        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        constant = helper.make_node("Constant", [], ["c"], value=weight)
        graph = helper.make_graph([node, constant], "g", [value[0]], [value[1]], [weight, small])
        yield helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    for bundle in BUNDLES:
        yield from files(bundle, "model.onnx")


if __name__ == "__main__":
    main()
