"""Measure what hostile files cost: CPU seconds and memory of every parser that reads bytes from outside.

python benchmarks/hostile_input.py [--sizes 10000,1000000,10000000] [--only WORD] [--write]

Each file is parsed in a process of its own, after a file of 500 bytes of the same kind, so that imports do not count.
CPU seconds are user and system time, of child processes too. Memory is the peak above what the process had before, with
the pages of the file that are mapped. The limit is 2 s and twice the file, or 32 MiB if that is more, because a small
file costs next to nothing whatever its multiple is. `--write` puts the table into docs/security.md.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hostile_files as files

SIZES = (10_000, 1_000_000, 10_000_000)
MAX_SECONDS, MAX_RATIO, FLOOR = 2.0, 2.0, 32 << 20
KILLED_AFTER_SECONDS, ADDRESS_SPACE = 60, 12 << 30

Make = Callable[[Path, int], Path]


@dataclass(frozen=True)
class Case:
    parser: str
    attack: str
    make: Make
    read: Callable[[Path], object]


# -- parsers --------------------------------------------------------------------------------------


def load(path):
    import packager

    packager.load(path, fallback=False, selftest=True, threads=1)


def verify(path, **trust):
    import packager
    from packager.errors import IntegrityFailed

    report = packager.verify(path, parity=False, **trust)
    if not report.ok:
        raise IntegrityFailed(str(path), str(report.as_json()["structure"])[:200])


def diff(path):
    import packager

    packager.diff(files.SAMPLES / "onnx.zip", path)


def inspect(path):
    from packager.cli.describe import inspect

    inspect(path)


def read(path):
    from packager import checkpoint

    checkpoint.read(path)


def read_weights(path):
    """Inspect and read a checkpoint, as `package inspect` and a build do."""
    try:
        inspect(path)
    finally:
        read(path)


def wire(path):
    from packager.bundle.onnx_wire import find_external_tensors

    find_external_tensors(path.read_bytes(), "model.onnx_data", 1 << 20)


def manifest(path):
    from packager.project.manifest import load_manifest

    load_manifest(path)


def lock(path):
    from packager.builder.lockfile import read_lockfile

    read_lockfile(path)


def arrays(path):
    from packager.common.array_files import read_arrays

    read_arrays(path, "x.npz")


def certificates(path):
    from packager.signature.keys import read_certificates

    read_certificates([path])


def public_key(path):
    from packager.signature.keys import read_public_key

    read_public_key(path)


def exported_program(path):
    import io

    from packager.common.deterministic_zip import write_zip
    from packager.runtime.exported_program_archive import ROOT, check_archive

    content, stream = path.read_bytes(), io.BytesIO()
    write_zip(stream, [(f"{ROOT}/models/model.json", len(content), [content])])
    check_archive(stream)


def pretrained(path):
    from packager.checkpoint.locate import locate_files
    from packager.checkpoint.state_dict import read_located
    from packager.model.huggingface import load_pretrained
    from packager.project.manifest import load_manifest

    manifest = path.parent / "package.yaml"
    inputs = "inputs: {x: {dtype: int64, shape: [1], range: [0, 9]}}\n"
    manifest.write_text(f"schema: 1\nname: net\nversion: 1.0.0\nmodel: {{}}\ncheckpoint: {{path: hf}}\n{inputs}")
    located = locate_files(path)
    state = read_located(located, "auto", trust_pickle=False, where=None, allow_empty=True)
    load_pretrained(load_manifest(manifest), located, state)


# -- cases ----------------------------------------------------------------------------------------


def list_cases() -> list[Case]:
    return [*bundle_cases(), *model_cases(), *weight_cases(), *pickle_cases(), *other_cases()]


def bundle_cases() -> list[Case]:
    path = "p" * 200
    sums = {
        "lines by count": "{}",
        "the same line": "a",
        "folders by depth": "/".join(["{}", *("a" * 31)]),
        "long names": "/".join([f"{{}}{path}", *[path] * 31]),
    }
    cases = [Case("SHA256SUMS", attack, files.sums(pattern), load) for attack, pattern in sums.items()]
    cases += [
        Case(
            "FINGERPRINT", "one long line", lambda f, n: files.with_file(f, "FINGERPRINT", "h" * n, sealed=False), load
        ),
        Case("config.json", "inputs by count", files.many_inputs, load),
        Case("golden.safetensors", "cases by count", files.golden_cases, load),
        Case("ZIP archive", "entries by count", files.archive(8), load),
        Case("ZIP archive", "long names", files.archive(60_000), load),
        Case(
            "model.sig",
            "values by count",
            files.signature,
            partial(verify, public_key=files.SAMPLES / "signer.pub.pem"),
        ),
        Case("model.sig", "certificates by count", partial(files.signature, certificates=1), signed_by_chain),
        Case("certificates", "by count", files.pem, certificates),
        Case("public key", "certificates by count", files.pem, public_key),
    ]
    for attack, text in files.JSON.items():
        cases += [
            Case("config.json", attack, files.record("config.json", text), load),
            Case("parity.json", attack, files.record("evidence/parity.json", text), verify),
            Case("build.json", attack, files.record("evidence/build.json", text), verify),
            Case("records in diff", attack, files.record("evidence/parity.json", text), diff),
        ]
    return cases


def signed_by_chain(path):
    from packager.signature.verify import read_trust

    trust = files.pem(Path(tempfile.mkdtemp(dir=path.parent)), 500)
    read_trust(None, trust)
    verify(path, certificate_chain=trust)


def model_cases() -> list[Case]:
    attacks = {
        "nodes by count": files.graph_of(files.field(1, b"")),
        "attributes by count": files.graph_of(files.field(1, files.field(5, b""))),
        "external weights by count": files.graph_of(files.EXTERNAL),
        "unknown fields by count": files.graph_of(b"\xf8\x06\x01"),
        "by depth": files.deep_onnx,
        "dims by count": files.packed_dims,
    }
    cases = [Case("ONNX, wire reader", attack, make, wire) for attack, make in attacks.items()]
    cases += [Case("ONNX in inspect", attack, make, inspect) for attack, make in attacks.items()]
    expression = {
        "an expression by length": lambda n: json.dumps({"expr_str": "Add(" + "1," * (n // 2) + ")"}),
        "an expression by depth": lambda n: json.dumps({"expr_str": "-" * n + "1"}),
    }
    texts = {**expression, **{attack: partial(text, "a") for attack, text in files.JSON.items()}}
    cases += [Case("exported program", a, files.text_file("model.json", t), exported_program) for a, t in texts.items()]
    return cases


def weight_cases() -> list[Case]:
    header = {
        "tensors by count": lambda n: files.safetensors_of("{}", "[0]", min(n, 9_990_000)),
        "dims by count": lambda n: files.safetensors_of("{}", f"[{','.join('0' * 60)}]", min(n, 9_990_000)),
        **{attack: files.header_of(text) for attack, text in files.JSON.items()},
    }
    cases = [
        Case("safetensors header", attack, files.safetensors(content), read_weights)
        for attack, content in header.items()
    ]
    for attack, text in {**files.JSON, "one shard each": many_shards}.items():
        index = files.index("model.safetensors.index.json", partial(text, "weight_map"))
        cases.append(Case("sharded index", attack, index, read_weights))
    for attack, text in {
        "pieces by count": partial(files.pieces, side_by_side=False),
        "pieces side by side": partial(files.pieces, side_by_side=True),
        **{attack: partial(text, "tensors") for attack, text in files.JSON.items()},
    }.items():
        cases.append(Case("index of pieces", attack, files.index("model.pieces.json", text), read_weights))
    for attack, text in files.JSON.items():
        cases.append(Case("config.json of transformers", attack, hugging_face(text), pretrained))
        cases.append(Case("checkpoint.json of a run", attack, run_record(text), inspect))
    return cases


def many_shards(name, size):
    return files.fill('"{}":"{}",', size, f'{{"{name}":{{', "}}")


def hugging_face(text):
    def make(folder, size):
        path = files.copied_folder(folder, 500)
        (path / "config.json").write_text(text("id2label", size))
        return path

    return make


def run_record(text):
    def make(folder, size):
        (folder / "step-00000001").mkdir()
        (folder / "step-00000001/checkpoint.json").write_text(text("history", size))
        return folder

    return make


def pickle_cases() -> list[Case]:
    attacks = {
        "names by count": (files.named_value, b"\x80\x02}", b"."),
        "dicts by count": (b"}", b"\x80\x02", b"."),
        "tuples by depth": (b"\x85", b"\x80\x02N", b"."),
        "lists by depth": (b"]q\x00h\x00a", b"\x80\x02", b"."),
        "marks by count": (b"(", b"\x80\x02", b"."),
        "copies of a dict": (b"}q\x00h\x00", b"\x80\x02", b"."),
        "calls by count": (b"ccollections\nOrderedDict\n)R", b"\x80\x02", b"."),
        "globals by count": (b"ccollections\nOrderedDict\n", b"\x80\x02", b"."),
        "unsafe globals by count": (lambda n: b"cos\nf%07d\n" % n, b"\x80\x02", b"."),
        "numbers by count": (b"J\x01\x01\x01\x01", b"\x80\x02](", b"e."),
        "newlines": (b"\n", b"\x80\x02c", b"."),
        "one text": (b"a", b"\x80\x02X\x00\x00\x00\x7f", b"."),
    }
    cases = []
    for attack, (item, start, end) in attacks.items():
        make = partial(files.pickled, item, start=start, end=end)
        cases += [
            Case(".pt", attack, make(), read_weights),
            Case(".pt, legacy", attack, make(zipped=False), read_weights),
            Case(".metadata of DCP", attack, make(name=".metadata"), read),
        ]
    cases += [
        Case(".pt", "tensors by count", files.empty_tensors, read_weights),
        Case("names of weights", "wrappers by depth", files.safetensors(wrapped), fit),
        Case("names of weights", "by count", files.safetensors(lambda n: files.safetensors_of("a.{}", "[0]", n)), fit),
        Case(".pt", "entries by count", files.crowded, read_weights),
    ]
    return cases


def wrapped(size):
    return files.with_header(json.dumps({"module." * (size // 7): files.EMPTY_TENSOR}).encode())


def fit(path):
    """Read a checkpoint, and compare its names with those of a module."""
    from packager import checkpoint
    from packager.checkpoint.key_matching import fit as fit_names

    shapes = {f"{number}.weight": (1, 1) for number in range(1000)}
    fit_names(checkpoint.read(path).state, shapes)


def other_cases() -> list[Case]:
    yaml = {
        "values by count": lambda n: files.MANIFEST + files.fill("- a\n", n, "authors:\n"),
        "unknown fields by count": lambda n: files.fill("field{}: 1\n", n, files.MANIFEST),
        "long unknown names": lambda n: files.fill(f"{'nameversion' * 90}{{}}: 1\n", n, files.MANIFEST),
        "aliases": files.aliases,
        "lists by depth": lambda n: files.MANIFEST + "metadata: " + "[" * (n // 2) + "]" * (n // 2),
        "maps by depth": lambda n: files.MANIFEST + "metadata: " + "{a: " * (n // 5) + "}" * (n // 5),
        "blocks by depth": lambda n: files.MANIFEST + "metadata:\n" + "- " * (n // 2) + "a",
        "dims that no input has": files.dims_without_inputs,
        "unknown fields up to the limit": lambda n: files.fill("field{}: 1\n", min(n, 4900 * 16), files.MANIFEST),
        "comments": lambda n: files.fill("# a\n", n, files.MANIFEST),
        "one number": lambda n: files.MANIFEST + "metadata: " + "9" * n,
        "one text": lambda n: files.MANIFEST + "description: " + "a" * n,
        "one quoted text": lambda n: files.MANIFEST + 'description: "' + "\\n" * (n // 2) + '"',
        "tags": lambda n: files.MANIFEST + "metadata: " + "!a" * (n // 2) + " b",
        "documents": lambda n: files.MANIFEST + "--- a\n" * (n // 6),
    }
    arrays_of = {
        "zeros, deflated": files.deflated(1),
        "zeros, deflated in 50 entries": files.deflated(50),
        "a declared size": files.npz_of(files.npy_head(1 << 34)),
        "arrays by count": files.npz_of(files.npy_head(0), each=260),
        "items of no size": files.npz_of(files.npy_head(1 << 50, "|V0")),
    }
    cases = [
        Case("package.yaml", attack, files.text_file("package.yaml", text), manifest) for attack, text in yaml.items()
    ]
    wrong = {"wrong values by count": lambda _name, n: files.fill('"{}":0,', n, files.LOCK, "}}")}
    cases += [
        Case("package.lock", attack, files.text_file("package.lock", partial(text, "code")), lock)
        for attack, text in {**files.JSON, **wrong}.items()
    ]
    cases += [Case(".npz", attack, make, arrays) for attack, make in arrays_of.items()]
    cases.append(
        Case(
            ".safetensors of arrays",
            "tensors by count",
            files.safetensors(lambda n: files.safetensors_of("{}", "[0]", n)),
            arrays,
        )
    )
    return cases


# -- measuring ------------------------------------------------------------------------------------


def measure(case: Case, size: int, folder: Path) -> dict[str, object]:
    """Parse a file in this process. Returns CPU seconds, bytes of memory and the outcome."""
    warnings.simplefilter("ignore")
    for name in ("small", "large"):
        (folder / name).mkdir()
    attempt(case.read, case.make(folder / "small", 500))
    path = case.make(folder / "large", size)
    sizes = [p.stat().st_size for p in (folder / "large").rglob("*") if p.is_file()]
    written = sum(n for n in sizes if 2 * n > size) or sum(sizes)  # not the small files around the hostile one
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    baseline, started = memory("VmRSS"), seconds()
    outcome = attempt(case.read, path)
    return {"seconds": seconds() - started, "memory": memory("VmHWM") - baseline, "bytes": written, "outcome": outcome}


def attempt(parse: Callable[[Path], object], path: Path) -> str:
    try:
        parse(path)
    except Exception as error:  # noqa: BLE001 (the outcome says which)
        from packager.bundle.fingerprint import SumsMalformed
        from packager.bundle.onnx_wire import WeightsUnsafe
        from packager.errors import PackagerError
        from packager.runtime.exported_program_archive import ArchiveUnsafe

        documented = isinstance(error, (PackagerError, SumsMalformed, WeightsUnsafe, ArchiveUnsafe))
        reason = " ".join(str(getattr(error, "why", None) or error).split())[-60:]
        return f"{'' if documented else 'CRASH '}{type(error).__name__}: {reason!r}"
    return "accepted"


def memory(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def run_child(number: int, size: int) -> dict[str, object]:
    """Run a case in a process of its own; one that is killed took too long or too much."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (KILLED_AFTER_SECONDS, KILLED_AFTER_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))

    command = [sys.executable, __file__, "--child", str(number), "--sizes", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
        return {"seconds": float("inf"), "memory": 0, "bytes": size, "outcome": f"ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def breaks_limit(result: dict) -> bool:
    crashed = result["outcome"].startswith(("CRASH", "ended"))
    allowed = max(FLOOR, MAX_RATIO * result["bytes"])
    return crashed or result["seconds"] > MAX_SECONDS or result["memory"] > allowed


def describe(case: Case, result: dict) -> str:
    size, used = result["bytes"], result["memory"]
    mark = "BREAKS" if breaks_limit(result) else ""
    name = f"{case.parser}: {case.attack}"
    cost = f"{size / 1e6:7.2f} MB {result['seconds']:7.2f} s {used / 1e6:7.1f} MB {used / size:7.1f} x"
    return f"{mark:7}{name:52.52}{cost}  {result['outcome']}"


def summarize(results: list[tuple[Case, dict]]) -> str:
    """Return a table with one row for each parser: its slowest and its largest file."""
    rows = [
        "| parser | attacks | most CPU | most memory | times the file, from 1 MB on |",
        "| --- | --- | --- | --- | --- |",
    ]
    for parser in dict.fromkeys(case.parser for case, _ in results):
        own = [(case, result) for case, result in results if case.parser == parser]
        attacks = len({case.attack for case, _ in own})
        slowest = max(result["seconds"] for _, result in own)
        largest = max(result["memory"] for _, result in own)
        ratio = max((result["memory"] / result["bytes"] for _, result in own if result["bytes"] > 900_000), default=0)
        rows.append(f"| {parser} | {attacks} | {slowest:.1f} s | {largest / 1e6:.0f} MB | {ratio:.1f} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--only", default="", help="cases with this word in their name")
    parser.add_argument("--write", action="store_true", help="put the table into docs/security.md")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes, cases = [int(size) for size in options.sizes.split(",")], list_cases()
    if options.child is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(cases[options.child], sizes[0], Path(folder))))
        return 0
    results = []
    for number, case in enumerate(cases):
        for size in sizes if options.only in f"{case.parser}: {case.attack}" else ():
            results.append((case, run_child(number, size)))
            print(describe(*results[-1]), flush=True)
    broken = sum(breaks_limit(result) for _, result in results)
    print(f"\n{summarize(results)}\n\n{len(results)} files, {broken} break the limit")
    if options.write:
        from report import put

        put("hostile_input", summarize(results), "security.md")
    return 1 if broken else 0


if __name__ == "__main__":
    began = time.perf_counter()
    status = main()
    sys.exit(status)
