"""Measure how fast a bundle of 2 GB is hashed, as a share of what hashlib alone reaches on the same cores.

python benchmarks/hashing.py

The bundle has the shapes that matter: one file with nearly all bytes, and a few of equal size. hashlib alone hashes as
many bytes from memory, with the same distribution over the same number of threads; the pages of the files are in the
page cache in both cases. The medians of 5 alternating runs go into docs/benchmarks.md.
"""

import hashlib
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import put

from packager.bundle.files import open_bundle
from packager.common.hashing import CHUNK_BYTES, count_usable_cores, map_on_cores

TOTAL, RUNS = 2 << 30, 5
CHUNK = bytes(range(256)) * (CHUNK_BYTES // 256)


def write(folder: Path, sizes: list[int]) -> None:
    folder.mkdir()
    for name in ("SHA256SUMS", "config.json"):
        (folder / name).touch()
    for number, size in enumerate(sizes):
        with (folder / f"file-{number}").open("wb") as stream:
            for _ in range(size // CHUNK_BYTES):
                stream.write(CHUNK)


def hash_alone(sizes: list[int]) -> float:
    def digest(size: int) -> str:
        state = hashlib.sha256()
        for _ in range(size // CHUNK_BYTES):
            state.update(CHUNK)
        return state.hexdigest()

    began = time.perf_counter()
    with ThreadPoolExecutor(count_usable_cores()) as threads:
        list(threads.map(digest, sizes))
    return time.perf_counter() - began


def hash_bundle(folder: Path) -> float:
    began = time.perf_counter()
    with open_bundle(folder) as files:
        map_on_cores(files.sha256, [path for path in files.paths if path.startswith("file-")])
    return time.perf_counter() - began


def main() -> None:
    cores = count_usable_cores()
    layouts = {"one file": [TOTAL], f"{2 * cores} files": [TOTAL // (2 * cores)] * (2 * cores)}
    rows = ["| 2 GiB as | packager | hashlib alone | ratio |", "| --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as scratch:
        for name, sizes in layouts.items():
            folder = Path(scratch) / name.replace(" ", "-")
            write(folder, sizes)
            hash_bundle(folder)  # into the page cache
            pairs = [(hash_bundle(folder), hash_alone(sizes)) for _ in range(RUNS)]
            ours, alone = (statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(mine / theirs for mine, theirs in pairs)
            rows.append(f"| {name} | {TOTAL / ours / 1e6:.0f} MB/s | {TOTAL / alone / 1e6:.0f} MB/s | {ratio:.2f} |")
            print(rows[-1], flush=True)
    put("hashing", f"## Hashing\n\nOn {cores} cores, times as medians of {RUNS}.\n\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
