"""Build a second time, in a different process, folder, hash seed, time zone, locale, umask and thread count.

Whatever must not influence a bundle is made different on purpose, and the cache is not used. The files are then
compared byte by byte, and for each that differs the first difference is described.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packager.bundle.archive import open_as_folder
from packager.bundle.fingerprint import parse_sums
from packager.bundle.layout import SUMS
from packager.common.paths import PACKAGE
from packager.errors import RebuildFailed
from packager.project.manifest import load_manifest


def rebuild_and_compare(manifest: Path, bundle: Path) -> dict[str, str]:
    """Build a manifest elsewhere, and return the first difference of every file from `bundle`; see `compare_bundles`.

    Raises `RebuildFailed`, and whatever `load_manifest` raises.
    """
    load_manifest(manifest)  # so that its errors name the path that the user gave
    with rebuild_elsewhere(manifest) as other, open_as_folder(bundle) as folder:
        return compare_bundles(folder, other)


@contextlib.contextmanager
def rebuild_elsewhere(manifest: Path) -> Iterator[Path]:
    """Yield the folder of a bundle built elsewhere, which is deleted afterwards. Raises `RebuildFailed`."""
    with tempfile.TemporaryDirectory(prefix="packager rebuild ") as scratch:
        project = Path(scratch) / "somewhere else"
        project.symlink_to(manifest.absolute().parent, target_is_directory=True)
        yield _run_build(project / manifest.name, Path(scratch))


def compare_bundles(bundle: Path, other: Path) -> dict[str, str]:
    """Return the first difference of every file of two bundles, by path; an empty string for equal bytes."""
    from packager.differences import find_first_difference

    left, right = (parse_sums((folder / SUMS).read_bytes().decode()) for folder in (bundle, other))
    paths = sorted({*left, *right})
    return {
        path: "" if left.get(path) == right.get(path) else find_first_difference(bundle, other, path) for path in paths
    }


def _run_build(manifest: Path, scratch: Path) -> Path:
    root = str(PACKAGE.parent)
    code = f"import os, sys; os.umask(0o077); sys.path.insert(0, {root!r}); from packager.cli import main; main()"
    arguments = ["build", str(manifest), "-o", str(scratch / "out"), "--no-cache", "--json"]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=scratch, env=_make_environment())
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise RebuildFailed(done.stderr.strip() or f"exit status {done.returncode}") from None
    if "error" in answer:
        raise RebuildFailed(done.stderr.strip())
    return Path(answer["bundle"])


def _make_environment() -> dict[str, str]:
    """Return this environment, with different values for everything that must not matter."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    zone = "Pacific/Kiritimati" if os.environ.get("TZ") != "Pacific/Kiritimati" else "America/Adak"
    locale = {"LANG": "C", "LC_ALL": "C"}
    return {**os.environ, **locale, "PYTHONHASHSEED": seed, "TZ": zone, "OMP_NUM_THREADS": "1", "USER": "other"}
