"""Look for traces of the machine, the user, the folders and the day of a build in bundles, which may not contain any.

`find_traces_below` searches every bundle that packager built below a folder, after every test: see conftest.py. A
bundle counts as built by packager if it is intact and no test sealed it (`projects.reseal`). Its contents are searched
once, however often it is copied.
"""

import getpass
import os
import re
import socket
import sys
import tempfile
import time
from pathlib import Path

from projects import RESEALED, ROOT

from packager.bundle import layout
from packager.bundle.fingerprint import SumsMalformed, check_integrity, read_sums

# Names of users and machines that are ordinary words, which a bundle may contain.
_COMMON_WORDS = {
    "admin", "build", "builder", "debian", "docker", "localhost", "python", "root", "runner", "ubuntu", "user"
}  # fmt: skip
_MIN_LETTERS = 3
_MIN_LETTERS_IN_BINARY = 6  # a million weights contain every shorter word
_CLEAN: set[str] = set()


def find_traces_below(root: Path, *folders: Path) -> list[str]:
    """List the traces in all bundles below `root`, as `bundle/file: trace`; `folders` may not be named either."""
    traces_below = []
    for bundle in find_bundles(root):
        fingerprint = _intact_fingerprint(bundle)
        if fingerprint is not None and fingerprint not in RESEALED | _CLEAN:
            traces = find_traces(bundle, *folders)
            traces_below += [f"{bundle.name}/{trace}" for trace in traces]
            if not traces:
                _CLEAN.add(fingerprint)
    return traces_below


def find_traces(bundle: Path, *folders: Path) -> list[str]:
    """List the traces in the files of a bundle, as `file: trace`; `folders` may not be named either."""
    texts, names = forbidden_texts(*folders), identifying_names(socket.gethostname(), _user())
    traces = []
    for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
        content = path.read_bytes()
        in_file = [text for text in texts if text.encode() in content]
        in_file += [name for name in names if contains_name(content, name)]
        traces += [f"{path.relative_to(bundle)}: {trace}" for trace in in_file]
    return traces


def forbidden_texts(*folders: Path) -> list[str]:
    """List the texts that no file may contain: folders of this machine, `folders`, and today's date in ISO form."""
    paths = {*folders, Path.cwd(), Path.home(), ROOT, Path(sys.prefix), Path(tempfile.gettempdir()), Path("/tmp")}
    paths |= {path.resolve() for path in paths}
    days = {time.strftime("%Y-%m-%d", day) for day in (time.localtime(), time.gmtime())}
    # /tmp is searched as /tmp/, because /tmpl is unrelated; / is everywhere.
    texts = {str(path) if len(path.parts) > 2 else f"{path}/" for path in paths if len(path.parts) > 1}
    return sorted({*texts, *days, "site-packages", "/root/"})


def identifying_names(host: str, user: str) -> list[str]:
    """List the names of a machine and a user, except those that identify nobody."""
    names = {host, host.partition(".")[0], user}
    return sorted(name for name in names if len(name) >= _MIN_LETTERS and name.lower() not in _COMMON_WORDS)


def find_bundles(root: Path) -> list[Path]:
    """List every folder below `root` that looks like a bundle."""
    return [Path(folder) for folder, _, files in os.walk(root) if {layout.SUMS, layout.FINGERPRINT} <= set(files)]


def contains_name(content: bytes, name: str) -> bool:
    """Return whether a file contains a name as a whole word; short names are only searched in text."""
    if re.search(rb"(?<![A-Za-z0-9_])" + re.escape(name.encode()) + rb"(?![A-Za-z0-9_])", content) is None:
        return False
    return len(name) >= _MIN_LETTERS_IN_BINARY or _is_text(content)


def _intact_fingerprint(bundle: Path) -> str | None:
    if not (bundle / layout.SUMS).is_file():  # reading a pipe, which a test may have put there, would block
        return None
    try:
        fingerprint, sums = read_sums(bundle)
        return fingerprint if check_integrity(bundle, sums).is_intact else None
    except (OSError, SumsMalformed):
        return None


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, the user may only have a number
        return ""
