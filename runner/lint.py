"""Check the format of the runner's C++ sources, then run clang-tidy on those that changed: `python runner/lint.py`.

runner/work/lint remembers which files passed, by what that depends on: a file's text, the headers, .clang-tidy and the
version of clang-tidy. `--fix` formats the sources.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RUNNER = Path(__file__).resolve().parent
PASSED = RUNNER / "work/lint"
FLAGS = ["-std=c++17", "-Isource", "-pthread"]
INCLUDES = ["simdjson", "llhttp/include", "libdeflate"]


def main() -> None:
    """Check all sources; exit with 1 if one fails."""
    bin_folder = Path(sysconfig.get_path("scripts"))
    files = sorted(path for folder in ("source", "fuzz") for path in (RUNNER / folder).rglob("*.[ch]pp"))
    mode = ["-i"] if "--fix" in sys.argv else ["--dry-run", "--Werror"]
    formatted = subprocess.run([bin_folder / "clang-format", *mode, *files], check=False).returncode == 0
    subprocess.run([sys.executable, RUNNER / "third_party.py"], check=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sources = [path for path in files if path.suffix == ".cpp"]
        passed = list(pool.map(lambda path: check(bin_folder / "clang-tidy", path, files), sources))
    if not (formatted and all(passed)):
        raise SystemExit(1)
    print(f"clang-format and clang-tidy: {len(files)} files")


def check(clang_tidy: Path, source: Path, files: list[Path]) -> bool:
    """Run clang-tidy on a source, unless it passed before as it is; return whether it passes."""
    version = subprocess.run([clang_tidy, "--version"], capture_output=True, check=True).stdout
    headers = [path for path in files if path.suffix == ".hpp"]
    digest = hashlib.sha256(version)
    for path in (RUNNER / ".clang-tidy", Path(__file__), *headers, source):
        digest.update(path.read_bytes())
    mark = PASSED / digest.hexdigest()
    if mark.exists():
        return True
    includes = [option for name in INCLUDES for option in ("-isystem", f"work/third_party/{name}")]
    command = [clang_tidy, "--quiet", source.relative_to(RUNNER), "--", *FLAGS, *includes]
    result = subprocess.run(command, cwd=RUNNER, capture_output=True, text=True, check=False)
    if result.returncode:
        print(result.stdout)
        return False
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return True


if __name__ == "__main__":
    main()
