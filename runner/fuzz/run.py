"""Build the fuzzers with clang's sanitizers, and run them: `python runner/fuzz/run.py [--runs N] [--only http,npz]`.

Needs clang with its runtime (Debian: clang-16 and libclang-rt-16-dev). Each fuzzer is fuzz/NAME.cpp; it starts from the
files of corpora.py, from fuzz/regressions/NAME, and from what earlier runs found interesting. A finding ends the run
with status 1; its input is in runner/work/fuzz/findings. runner/work/fuzz/executions.json counts all executions, as
libFuzzer reports them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
RUNNER = FUZZ.parent
WORK = RUNNER / "work/fuzz"
SANITIZERS = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
LONGEST = 8192  # larger inputs are slower, and reach nothing more


def main() -> None:
    """Build and run the fuzzers that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000, help="executions of each fuzzer; 0: the regressions alone")
    parser.add_argument("--seconds", type=int, default=0, help="stop each after so many seconds")
    parser.add_argument("--only", help="names of fuzzers, separated by commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else sorted(path.stem for path in FUZZ.glob("*.cpp"))
    build(names, arguments.jobs)
    subprocess.run([sys.executable, FUZZ / "corpora.py", WORK / "corpora"], check=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        counts = list(pool.map(lambda name: run(name, arguments.runs, arguments.seconds), names))
    for name, executions in zip(names, counts, strict=True):
        count(name, executions or 0)
    if None in counts:
        raise SystemExit(1)
    print(f"{sum(filter(None, counts))} executions, no findings")


def build(names: list[str], jobs: int) -> None:
    """Compile the fuzzers, each to work/fuzz/fuzz/NAME."""
    compiler = find_clang()
    subprocess.run([sys.executable, RUNNER / "third_party.py"], check=True)
    folder = WORK.relative_to(RUNNER)
    settings = [
        f"BUILD={folder}", f"CXX={compiler}", f"CC={compiler.replace('clang++', 'clang')}", "WARNINGS=",
        f"OPTIMIZE={SANITIZERS} -fsanitize=fuzzer-no-link", "LIBRARIES=-pthread -ldl -fsanitize=fuzzer",
        "THIRD_PARTY_FLAGS=-fno-sanitize=pointer-overflow",  # libdeflate adds 0 to a null pointer
    ]  # fmt: skip
    targets = [f"{folder}/fuzz/{name}" for name in names]
    subprocess.run(["nice", "make", "--silent", "-C", RUNNER, f"-j{jobs}", *settings, *targets], check=True)


def find_clang() -> str:
    """Return the command of the newest clang."""
    for name in (*(f"clang++-{version}" for version in range(25, 13, -1)), "clang++"):
        if shutil.which(name):
            return name
    raise SystemExit("the fuzzers need clang; on Debian: apt-get install clang-16 libclang-rt-16-dev")


def run(name: str, runs: int, seconds: int) -> int | None:
    """Replay the regressions, then run the fuzzer; return the executions, or None after a finding."""
    grown, findings, corpora = WORK / "grown" / name, WORK / "findings", WORK / "corpora" / name
    for folder in (grown, findings, corpora):
        folder.mkdir(parents=True, exist_ok=True)
    inputs = sorted((FUZZ / "regressions" / name).glob("*")) + ([] if runs else sorted(corpora.iterdir()))
    fuzzer = [
        str(WORK / "fuzz" / name), "-malloc_limit_mb=512", "-rss_limit_mb=3000", "-timeout=20",
        f"-artifact_prefix={findings}/{name}-",
    ]  # fmt: skip
    searching = [f"-runs={runs}", f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-print_final_stats=1"]
    arguments = ([[str(path) for path in inputs]] if inputs else []) + (
        [[*searching, str(grown), str(corpora)]] if runs else []
    )
    executions = 0
    for rest in arguments:
        result = subprocess.run(["nice", *fuzzer, *rest], capture_output=True, text=True, errors="replace", check=False)
        if result.returncode:
            print(f"{name}: a finding\n{result.stderr[-6000:]}", flush=True)
            return None
        executions += sum(map(int, re.findall(r"number_of_executed_units: +(\d+)", result.stderr)))
    print(f"{name}: {executions} executions, {len(inputs)} files replayed", flush=True)
    return executions


def count(name: str, executions: int) -> None:
    """Add executions to those of earlier runs."""
    path = WORK / "executions.json"
    counts = json.loads(path.read_text()) if path.exists() else {}
    counts[name] = counts.get(name, 0) + executions
    path.write_text(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main()
