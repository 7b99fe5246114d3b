"""Build the runners that ship, with the C++ compiler of PyPI's ziglang: `python runner/build.py [--record]`.

A runner needs glibc 2.28 or later and nothing else of the host, as libc++ is linked in. It is the same, byte for byte,
whatever machine and folder it was built on: no path, time or build id is in it. The digests that packager knows are in
packager/standalone/runners.json, a list for each target: the newest first, and then those of earlier releases, whose
executables `package verify` still knows. A build that differs from the newest fails. `--record` writes the newest, and
`--record --keep` puts it in front of one that was released.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RUNNER = Path(__file__).resolve().parent
RECORD = RUNNER.parent / "packager/standalone/runners.json"
PACKAGE = RUNNER / "package/torch_packager_runners"
THIRD_PARTY = RUNNER / "work/third_party"
TARGETS = {"linux-x64": "x86_64-linux-gnu.2.28", "linux-arm64": "aarch64-linux-gnu.2.28"}
CPUS = {"linux-x64": "x86_64", "linux-arm64": "generic"}
INCLUDES = ["simdjson", "llhttp/include", "libdeflate"]
# What the time of a prediction or a digest depends on; everything else is built for size.
FAST = {
    "array", "compare", "half", "infer_request", "json_arrays", "response_encoder", "sha256", "sha256_instructions",
    "tensors", "adler32", "crc32", "deflate_decompress", "llhttp", "simdjson",
}  # fmt: skip
FLAGS = [
    "-g0", "-fno-ident", "-pthread", "-fPIE", "-ffunction-sections", "-fdata-sections", "-fvisibility=hidden",
    "-fstack-protector", "-D_FORTIFY_SOURCE=2",
]  # fmt: skip
CXX_FLAGS = [
    "-std=c++17", "-ffp-contract=off", "-fvisibility-inlines-hidden", "-U_LIBCPP_HARDENING_MODE",
    "-D_LIBCPP_HARDENING_MODE=_LIBCPP_HARDENING_MODE_FAST",
    "-DSIMDJSON_IMPLEMENTATION_ICELAKE=0", "-DSIMDJSON_IMPLEMENTATION_WESTMERE=0",
]  # fmt: skip
C_FLAGS = ["-fno-unwind-tables", "-fno-asynchronous-unwind-tables"]  # nothing is thrown through it
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
LINK = ["-pie", "-s", "-Wl,--gc-sections", "-Wl,--build-id=none", "-Wl,-z,relro", "-Wl,-z,now", "-pthread", "-ldl"]


def main() -> None:
    """Build the runners for all targets, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, action="append", help="may be repeated; all without it")
    parser.add_argument("--record", action="store_true", help="write the digests instead of comparing them")
    parser.add_argument("--keep", action="store_true", help="with --record: the newest digests were released")
    parser.add_argument("--output", type=Path, default=PACKAGE, help="the folder for the runners")
    parser.add_argument("--work", type=Path, default=RUNNER / "work/zig", help="the folder for objects and zig's cache")
    parser.add_argument("--zig", default="python-zig", help="the command that runs zig")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    arguments = parser.parse_args()
    subprocess.run([sys.executable, RUNNER / "third_party.py"], check=True)
    os.nice(10)
    digests = {}
    for target in arguments.target or TARGETS:
        path = build(target, arguments.zig.split(), arguments.work.absolute(), arguments.output, arguments.jobs)
        digests[target] = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{target}: {path.stat().st_size} bytes, sha256 {digests[target]}", flush=True)
    settle(digests, record=arguments.record, keep=arguments.keep)


def settle(digests: dict[str, str], *, record: bool, keep: bool) -> None:
    """Write the digests, or compare them with those that were written before."""
    recorded: dict[str, list[str]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    differing = sorted(target for target, digest in digests.items() if recorded.get(target, [""])[0] != digest)
    if record:
        for target in differing:
            recorded[target] = [digests[target], *recorded.get(target, [])[0 if keep else 1 :]]
        RECORD.write_text(json.dumps(recorded, indent=2, sort_keys=True) + "\n")
    elif differing:
        raise SystemExit(
            f"{', '.join(differing)}: not the bytes that {RECORD.name} knows; after a change, run `make runners`"
        )


def build(target: str, zig: list[str], work: Path, output: Path, jobs: int) -> Path:
    """Compile all sources for a target, link them, and return the path of the runner."""
    folder = work / target
    folder.mkdir(parents=True, exist_ok=True)
    licenses = folder / "license_texts.cpp"
    subprocess.run([sys.executable, RUNNER / "embed_licenses.py", licenses], check=True)
    sources = [*sorted((RUNNER / "source").rglob("*.cpp")), licenses, *third_party_sources()]
    environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(work / "cache")}
    common = ["-target", TARGETS[target], f"-mcpu={CPUS[target]}"]
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(lambda source: compile_one(source, folder, zig, common, environment), sources))
    output.mkdir(parents=True, exist_ok=True)
    path = output / target
    # Relative names, because the linker orders by them.
    names = [str(name.relative_to(folder)) for name in objects]
    link = [*zig, "c++", *common, "-Os", "-o", path.absolute(), *names, *LINK]
    subprocess.run(link, cwd=folder, env=environment, check=True)
    return path


def third_party_sources() -> list[Path]:
    """Return the sources of the libraries, in a fixed order."""
    folders = [THIRD_PARTY / "llhttp/src", THIRD_PARTY / "libdeflate/lib"]
    return [THIRD_PARTY / "simdjson/simdjson.cpp", *sorted(path for folder in folders for path in folder.rglob("*.c"))]


def compile_one(source: Path, folder: Path, zig: list[str], common: list[str], environment: dict[str, str]) -> Path:
    """Compile a source to an object below the folder, and return its path."""
    base = folder if source.is_relative_to(folder) else RUNNER
    path = folder / f"{source.relative_to(base)}.o"
    path.parent.mkdir(parents=True, exist_ok=True)
    ours = not source.is_relative_to(THIRD_PARTY)
    compiler = ["c++", *CXX_FLAGS] if source.suffix == ".cpp" else ["cc", *C_FLAGS]
    includes = [option for name in INCLUDES for option in ("-isystem", f"work/third_party/{name}")]
    maps = [f"-ffile-prefix-map={folder}=.", f"-ffile-prefix-map={RUNNER}=."]
    speed = "-O2" if source.stem in FAST else "-Os"
    command = [*zig, *compiler, *common, speed, *FLAGS, *(WARNINGS if ours else ["-w"]), "-Isource", *includes, *maps]
    name = source.relative_to(RUNNER) if source.is_relative_to(RUNNER) else source
    if subprocess.run([*command, "-c", name, "-o", path], cwd=RUNNER, env=environment, check=False).returncode:
        raise SystemExit(f"{name} does not compile")
    return path


if __name__ == "__main__":
    main()
