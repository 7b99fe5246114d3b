"""Write files that cost a parser as much as their size allows: bombs by count, depth, declared size and compression.

Each function gets an empty folder and about how many bytes to write, and returns the path that the parser is given.
`LARGE_BUT_HONEST` are files that real models need, of the same sizes: they must be accepted.
"""

import base64
import hashlib
import io
import json
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

from packager.bundle.packing import unpack_bundle

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "tests/compat/0.1.0"


def fill(pattern: str, size: int, start: str = "", end: str = "") -> str:
    """Return numbered repetitions of a pattern, `{}` for the number, with about `size` characters."""
    text = pattern.replace("{}", "0000000")
    count = max(1, (size - len(start) - len(end)) // len(text))
    body = "".join(pattern.replace("{}", f"{number:07d}") for number in range(count))
    return start + body.removesuffix(",") + end


# -- JSON: each of these inside of an object, under the name given ---------------------------------


def many_lists(name: str, size: int) -> str:
    return fill("[],", size, f'{{"{name}":[', "]}")


def many_objects(name: str, size: int) -> str:
    return fill('{"a":0},', size, f'{{"{name}":[', "]}")


def many_names(name: str, size: int) -> str:
    return fill('"{}":"a",', size, f'{{"{name}":{{', "}}")


def allowed_names(name: str, size: int) -> str:
    """Write names as sparsely as in a real index: as many as are read."""
    return fill(f'"{{}}{"n" * 54}":"a",', size, f'{{"{name}":{{', "}}")


def deep_lists(name: str, size: int) -> str:
    return f'{{"{name}":{"[" * (size // 2)}{"]" * (size // 2)}}}'


def wide_text(name: str, size: int) -> str:
    return f'{{"{name}":"\U0001f600{"a" * (size - 20)}"}}'


def long_number(name: str, size: int) -> str:
    return f'{{"{name}":{"9" * (size - 20)}}}'


JSON = {
    "lists by count": many_lists,
    "objects by count": many_objects,
    "names by count": many_names,
    "names as in an index": allowed_names,
    "by depth": deep_lists,
    "one wide text": wide_text,
    "one number": long_number,
}


# -- bundles --------------------------------------------------------------------------------------


def bundle(folder: Path, sample: str = "onnx") -> Path:
    unpack_bundle(SAMPLES / f"{sample}.zip", folder / "bundle", force=False)
    return folder / "bundle"


def seal(folder: Path) -> Path:
    """Seal a bundle again, as an attacker does."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    unsealed = {"SHA256SUMS", "FINGERPRINT", "model.sig"}
    lines = (f"{hashlib.sha256((folder / p).read_bytes()).hexdigest()}  {p}\n" for p in files if p not in unsealed)
    sums = "".join(lines).encode()
    (folder / "SHA256SUMS").write_bytes(sums)
    fingerprint = base64.b64encode(hashlib.sha256(sums).digest()).decode()
    (folder / "FINGERPRINT").write_text(f"h1:{fingerprint}\n")
    return folder


def with_file(folder: Path, path: str, content: bytes | str, *, sealed: bool = True) -> Path:
    made = bundle(folder)
    (made / path).write_bytes(content.encode() if isinstance(content, str) else content)
    return seal(made) if sealed else made


def record(path: str, text):
    return lambda folder, size: with_file(folder, path, text("cases", size))


def many_inputs(folder: Path, size: int) -> Path:
    made = bundle(folder)
    config = json.loads((made / "config.json").read_text())
    config["inputs"] *= size // 60
    config["inputs"] = [{**tensor, "name": f"t{number}"} for number, tensor in enumerate(config["inputs"])]
    (made / "config.json").write_text(json.dumps(config)[:size])
    return seal(made)


def sums(pattern: str):
    def make(folder: Path, size: int) -> Path:
        made = bundle(folder)
        (made / "SHA256SUMS").write_text(fill(f"{'0' * 64}  {pattern}\n", size))
        return made

    return make


def golden_cases(folder: Path, size: int) -> Path:
    """Many cases in parity.json, and as many tensors beside them."""
    made = bundle(folder)
    parity = json.loads((made / "evidence/parity.json").read_text())
    case = {"name": "", "golden": True, "outputs": {}, "sizes": {}}
    count = max(1, size // 150)
    parity["cases"] = [{**case, "name": f"c{number}"} for number in range(count)]
    (made / "evidence/parity.json").write_text(json.dumps(parity))
    (made / "evidence/golden.safetensors").write_bytes(safetensors_of("c{}/input/x", "[0]", count * 75))
    return seal(made)


def archive(name_length: int):
    """An archive of empty entries, as write_zip would write it, with names of this length."""

    def make(folder: Path, size: int) -> Path:
        from packager.common.deterministic_zip import write_zip

        each = 2 * name_length + 46 + 30 + 32 + 4
        names = (f"{number:0{name_length}d}" for number in range(max(1, size // each)))
        with (folder / "many.zip").open("wb") as stream:
            write_zip(stream, ((name, 0, []) for name in names))
        return folder / "many.zip"

    return make


# -- ONNX -----------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def graph_of(item: bytes):
    """A model with nothing but repetitions of this in its graph; "location" is what external weights have."""

    def make(folder: Path, size: int) -> Path:
        count = max(1, (size - 40) // len(item))
        content = field(2, b"location") + field(7, item * count)
        (folder / "model.onnx").write_bytes(content)
        return folder / "model.onnx"

    return make


EXTERNAL = field(5, field(8, b"w") + b"\x70\x01" + field(13, field(1, b"location") + field(2, b"x")))


def deep_onnx(folder: Path, size: int) -> Path:
    content = b"location"
    while len(content) < size:
        content = field(1, field(5, field(6, content)))
        if len(content) > 5000:  # building deeper ones is quadratic: repeat them
            content *= size // len(content) + 1
            break
    (folder / "model.onnx").write_bytes(field(2, b"location") + field(7, content[:size]))
    return folder / "model.onnx"


def packed_dims(folder: Path, size: int) -> Path:
    (folder / "model.onnx").write_bytes(
        field(2, b"location") + field(7, field(5, field(1, b"\x01" * size) + b"\x70\x01"))
    )
    return folder / "model.onnx"


# -- checkpoints ----------------------------------------------------------------------------------


def safetensors_of(pattern: str, shape: str, size: int) -> bytes:
    return with_header(
        fill(f'"{pattern}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}},', size, "{", "}").encode()
    )


EMPTY_TENSOR = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


def with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def safetensors(content):
    def make(folder: Path, size: int) -> Path:
        (folder / "best.safetensors").write_bytes(content(size))
        return folder / "best.safetensors"

    return make


def header_of(text):
    return lambda size: with_header(text("__metadata__", min(size, 9_990_000)).encode())


def index(name: str, text):
    def make(folder: Path, size: int) -> Path:
        (folder / name).write_text(text(size))
        (folder / "a").write_bytes(with_header(b"{}"))
        return folder / name

    return make


def pieces(size: int, *, side_by_side: bool) -> str:
    """A tensor in pieces that fill it, or that all overlap along the first axis and nowhere else."""
    pattern = '{"file":"a.safetensors","offset":[%d,%d],"shape":[%d,1]},'
    count = max(2, size // 66)
    rows = [pattern % ((n, n, count) if side_by_side else (0, n, 4)) for n in range(count)]
    shape = [2 * count, count] if side_by_side else [4, count]
    if side_by_side:  # the sizes add up, because the last piece covers what is missing
        rows[-1] = f'{{"file":"a.safetensors","offset":[0,0],"shape":{[2 * count - 1, count]}}},'
        missing = 2 * count * count - (count - 1) * count - (2 * count - 1) * count
        rows[-1] += f'{{"file":"a.safetensors","offset":[0,0],"shape":[1,{missing}]}},' if missing > 0 else ""
    body = "".join(rows).removesuffix(",")
    return f'{{"schema":1,"whole":"a","tensors":{{"w":{{"dtype":"F32","shape":{shape},"pieces":[{body}]}}}}}}'


def torch_zip(data: bytes) -> bytes:
    """What torch.save writes around its pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/byteorder", b"little")
    return stream.getvalue()


LEGACY_HEAD = b"".join(
    pickle.dumps(value, 2)
    for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
)


def pickled(item, *, end: bytes = b".", start: bytes = b"\x80\x02", zipped: bool = True, name: str = "best.pt"):
    """A pickle of repetitions of some operations: bytes, or a function from the number to bytes."""

    def make(folder: Path, size: int) -> Path:
        length = len(item(0) if callable(item) else item)
        count = max(1, size // length)
        body = b"".join(map(item, range(count))) if callable(item) else item * count
        data = start + body + end
        content = torch_zip(data) if zipped else LEGACY_HEAD + data + pickle.dumps([], 2)
        if name == ".metadata":
            content = data
            (folder / "__0_0.distcp").write_bytes(b"x")
        (folder / name).write_bytes(content)
        return folder if name == ".metadata" else folder / name

    return make


def named_value(number: int) -> bytes:
    return b"X\x07\0\0\0%07dNs" % number


def empty_tensors(folder: Path, size: int) -> Path:
    """A million tensors of one storage."""
    import torch

    shared = torch.zeros(1)
    torch.save({f"{number:07d}": shared for number in range(max(1, size // 100))}, folder / "best.pt")
    return folder / "best.pt"


def crowded(folder: Path, size: int) -> Path:
    """An archive whose first bytes are none of an archive, with an entry for every 49 bytes."""
    body = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0) + b"a/b"
        for _ in range(min(size // 49, 65_000))
    )
    body *= 1 if size // 49 < 65_000 else size // 49 // 65_000
    count = len(body) // 49
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(body), 4)
    end64 += struct.pack("<4sLQL", b"PK\6\7", 0, 4 + len(body), 1)
    short = min(count, 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, short, short, min(len(body), 0xFFFFFFFF), 4, 0)
    end = end if count < 0xFFFF else struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (folder / "best.pt").write_bytes(b"junk" + body + (end64 if count >= 0xFFFF else b"") + end)
    return folder / "best.pt"


# -- signatures -----------------------------------------------------------------------------------


def signature(folder: Path, size: int, certificates: int = 0) -> Path:
    """A bundle with a model.sig of this size: a chain of one certificate many times, or a payload."""
    made = bundle(folder, "torchscript")
    parsed = json.loads((made / "model.sig").read_text())
    if certificates:
        entry = {"rawBytes": base64.b64encode(certificate()).decode()}
        chain = {"certificates": [entry] * max(1, size // 600)}
        parsed["verificationMaterial"] = {"x509CertificateChain": chain}
    else:
        parsed["dsseEnvelope"]["payload"] = base64.b64encode(many_objects("a", size * 3 // 4).encode()).decode()
    (made / "model.sig").write_text(json.dumps(parsed))
    return made


def certificate() -> bytes:
    import sys

    sys.path.insert(0, str(ROOT / "tests"))
    import pki
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    made = pki.certify("signer", ec.generate_private_key(ec.SECP256R1()), usage=("digital_signature",))
    return made.public_bytes(Encoding.DER)


def pem(folder: Path, size: int) -> Path:
    body = base64.encodebytes(certificate()).decode()
    text = f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"
    (folder / "chain.pem").write_text(text * max(1, size // len(text)))
    return folder / "chain.pem"


# -- manifests, locks, inputs ---------------------------------------------------------------------

LOCK = '{"schema":1,"name":"n","version":"1","checkpoint":"c","toolchain":{},"artifacts":{},"fingerprint":"f","code":{'
MANIFEST = "schema: 1\nname: net\nversion: 1.0.0\nmodel: {entry: model.py:Net}\ncheckpoint: {path: best.pt}\n"


def text_file(name: str, content):
    def make(folder: Path, size: int) -> Path:
        (folder / name).write_text(content(size))
        return folder / name

    return make


def aliases(size: int) -> str:
    lines = [MANIFEST, "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 2 + size // 90)]
    return "".join(lines)


def dims_without_inputs(size: int) -> str:
    """Names of dims that no input has, each of which is compared with all that inputs have."""
    count = min(size // 24, 4000)
    shape = ", ".join(f"batch_size_{number:05d}" for number in range(count))
    names = "".join(f"  batch-size-{number:05d}: {{}}\n" for number in range(count))
    return f"{MANIFEST}inputs:\n  x: {{dtype: float32, shape: [{shape}]}}\ndims:\n{names}"


def copied_folder(folder: Path, size: int) -> Path:
    from safetensors.numpy import save_file

    (folder / "hf").mkdir()
    (folder / "hf/config.json").write_text(many_objects("architectures", size))
    save_file({}, folder / "hf/model.safetensors")
    return folder / "hf"


def deflated(entries: int):
    """An .npz whose entries are zeros, a thousand times as large as the file."""

    def make(folder: Path, size: int) -> Path:
        total = size * 1000 // entries
        head = npy_head(total)
        with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as file:
            for number in range(entries):
                with file.open(f"x{number}.npy", "w") as stream:
                    stream.write(head)
                    for _ in range(0, total, 1 << 20):
                        stream.write(bytes(min(1 << 20, total)))
        return folder / "x.npz"

    return make


def npy_head(count: int, dtype: str = "|u1") -> bytes:
    text = repr({"descr": dtype, "fortran_order": False, "shape": (count,)}).encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text) + 1) + text + b"\n"


def npz_of(content: bytes, each: int = 0):
    def make(folder: Path, size: int) -> Path:
        with zipfile.ZipFile(folder / "x.npz", "w") as file:
            count = max(1, size // (each or 160)) if each else 1
            for number in range(count):
                file.writestr(f"{number}.npy", content)
            file.writestr("rest", b"" if each else bytes(size))
        return folder / "x.npz"

    return make


def copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copy(source, folder))


def deflated_record(folder: Path, size: int) -> Path:
    """A gzip stream under the name of an array."""
    (folder / "x.npz").write_bytes(zlib.compress(bytes(size * 100)))
    return folder / "x.npz"
