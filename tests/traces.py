"""No byte of a bundle tells of the machine, the user, the folders or the day it was built on.

`found_below` looks through every bundle that packager built below a folder, after every test: see conftest.py. A bundle
counts as built by packager where it is whole and no test sealed it itself (`projects.reseal`); what is in it is looked
at once, however often it is copied.
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
from packager.bundle.fingerprint import SumsMalformed, check_integrity, compute_fingerprint, parse_sums

# Names of users and machines that are words of their own, which a bundle may well say.
_COMMON = {"admin", "build", "builder", "debian", "docker", "localhost", "python", "root", "runner", "ubuntu", "user"}
_LEAST_LETTERS = 3
_LEAST_LETTERS_IN_BINARY = 6  # among a million weights is every shorter word
_CLEAN: set[str] = set()


def found_below(folder: Path, *places: Path) -> list[str]:
    """Every trace in the bundles below the folder, as `bundle/file: trace`; `places` are folders to look for, too."""
    found = []
    for bundle in bundles_below(folder):
        seal = _seal(bundle)
        if seal is not None and seal not in RESEALED | _CLEAN:
            traces = found_in(bundle, *places)
            found += [f"{bundle.name}/{trace}" for trace in traces]
            if not traces:
                _CLEAN.add(seal)
    return found


def found_in(bundle: Path, *places: Path) -> list[str]:
    """Every trace in the files of one bundle, as `file: trace`."""
    folders, words = strangers(*places), names(socket.gethostname(), _user())
    found = []
    for path in sorted(one for one in bundle.rglob("*") if one.is_file()):
        content = path.read_bytes()
        traces = [one for one in folders if one.encode() in content]
        traces += [one for one in words if _says(content, one)]
        found += [f"{path.relative_to(bundle)}: {one}" for one in traces]
    return found


def strangers(*places: Path) -> list[str]:
    """What no file may hold: folders of this machine, and today in ISO form."""
    folders = {*places, Path.cwd(), Path.home(), ROOT, Path(sys.prefix), Path(tempfile.gettempdir()), Path("/tmp")}
    folders |= {one.resolve() for one in folders}
    days = {time.strftime("%Y-%m-%d", day) for day in (time.localtime(), time.gmtime())}
    # /tmp is looked for as /tmp/, as /tmpl is another; / is everywhere.
    texts = {str(one) if len(one.parts) > 2 else f"{one}/" for one in folders if len(one.parts) > 1}
    return sorted({*texts, *days, "site-packages", "/root/"})


def names(host: str, user: str) -> list[str]:
    """The names of a machine and a user, but for those that say nothing."""
    known = {host, host.partition(".")[0], user}
    return sorted(one for one in known if len(one) >= _LEAST_LETTERS and one.lower() not in _COMMON)


def bundles_below(folder: Path) -> list[Path]:
    """Every folder that looks like a bundle."""
    wanted = {layout.SUMS, layout.FINGERPRINT}
    return [Path(place) for place, _, files in os.walk(folder) if wanted <= set(files)]


def _seal(bundle: Path) -> str | None:
    """The fingerprint of a bundle that is whole."""
    sums = bundle / layout.SUMS
    if not sums.is_file():  # a pipe that a test has put there would be waited for
        return None
    try:
        text = sums.read_bytes().decode()
        whole = check_integrity(bundle, parse_sums(text)).is_intact
    except (OSError, UnicodeDecodeError, SumsMalformed):
        return None
    return compute_fingerprint(text) if whole else None


def _says(content: bytes, name: str) -> bool:
    if re.search(rb"(?<![A-Za-z0-9_])" + re.escape(name.encode()) + rb"(?![A-Za-z0-9_])", content) is None:
        return False
    return len(name) >= _LEAST_LETTERS_IN_BINARY or _is_text(content)


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have a number for it alone
        return ""
