"""Fetch the C and C++ sources that the runner is built from: `python runner/third_party.py`.

They come out of source distributions on PyPI, those of the Python packages with which `package serve` parses requests.
The digests are pinned. An index that pip is configured with (index-url, extra-index-url) is asked, and PyPI without
one. `pip download` is no way to do this: it runs the build of a source distribution to learn its metadata.

runner/work/third_party gets simdjson, llhttp and libdeflate, and nothing of the packages around them.
"""

from __future__ import annotations

import ast
import hashlib
import html.parser
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

WORK = Path(__file__).resolve().parent / "work"
TARGET = WORK / "third_party"
SIMPLE = "https://pypi.org/simple"


@dataclass(frozen=True)
class Source:
    """A library inside a source distribution."""

    name: str
    project: str
    version: str
    sha256: str
    root: str
    files: tuple[str, ...]  # files and folders below root that are needed

    @property
    def archive(self) -> str:
        """Return the file name of the source distribution."""
        return f"{self.project}-{self.version}.tar.gz"


SOURCES = (
    Source(
        "simdjson", "pysimdjson", "7.0.2", "44cf276e48912a3b9c7ca362c14da8420a7ac15a9f1a16ec95becff86db3904a",
        "simdjson", ("simdjson.h", "simdjson.cpp"),
    ),
    Source(
        "llhttp", "httptools", "0.9.0", "d484ebb7e3a3f3597b0f645fbd1b85633674ca808c1f5ba11c2caf7c66f5c8b6",
        "vendor/llhttp", ("include", "src", "LICENSE"),
    ),
    Source(
        "libdeflate", "deflate", "0.9.0", "962e0a6f1ea3a94b900a8ea0ce138fa92bfcbafda5b86367104a259ffcd3462b",
        "libdeflate", ("libdeflate.h", "common_defs.h", "lib", "COPYING"),
    ),
)  # fmt: skip


class Links(html.parser.HTMLParser):
    """Collect the addresses in a page of an index."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the addresses of links."""
        if tag == "a":
            self.addresses += [value for name, value in attrs if name == "href" and value]


def main() -> None:
    """Lay out the sources, unless they are there."""
    stamp, pins = TARGET / "pins", "".join(f"{source.archive} {source.sha256}\n" for source in SOURCES)
    if stamp.exists() and stamp.read_text() == pins:
        return
    for source in SOURCES:
        unpack(source, fetch(source))
    stamp.write_text(pins)


def fetch(source: Source) -> Path:
    """Return the path of the source distribution, whose digest is right."""
    path = WORK / "downloads" / source.archive
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (path.exists() and digest(path.read_bytes()) == source.sha256):
        content = download(source)
        if digest(content) != source.sha256:
            raise SystemExit(f"{source.archive}: the index has {digest(content)}, not {source.sha256}")
        path.write_bytes(content)
    return path


def digest(content: bytes) -> str:
    """Return the SHA-256 of the content."""
    return hashlib.sha256(content).hexdigest()


def download(source: Source) -> bytes:
    """Return the content of the source distribution from the first index that has it."""
    settings = pip_settings()
    context = ssl.create_default_context(cafile=settings.get("cert"))
    indexes = [*settings.get("index-url", SIMPLE).split(), *settings.get("extra-index-url", "").split()]
    problems = []
    for index in indexes:
        page = f"{index.rstrip('/')}/{source.project}/"
        try:
            links = Links()
            links.feed(read(page if not page.startswith("file:") else f"{page}index.html", context).decode())
            for link in links.addresses:
                address = urllib.parse.urljoin(page, link.partition("#")[0])
                if PurePosixPath(urllib.parse.urlsplit(address).path).name == source.archive:
                    return read(address, context)
            problems.append(f"{page} lacks it")
        except OSError as error:
            problems.append(f"{page}: {error}")
    raise SystemExit(f"{source.archive} cannot be fetched: {'; '.join(problems)}")


def pip_settings() -> dict[str, str]:
    """Return pip's settings by option, those of the environment before those of files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in sorted(listing.stdout.splitlines(), reverse=True):  # global before download before :env:
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in ("global", "download", ":env:"):
            settings[option] = ast.literal_eval(value)
    return settings


def read(address: str, context: ssl.SSLContext) -> bytes:
    """Return what an address holds."""
    with urllib.request.urlopen(address, timeout=180, context=context) as answer:
        return bytes(answer.read())


def unpack(source: Source, archive: Path) -> None:
    """Write the library's files from the archive in place of the folder that has its name."""
    root = f"{source.project}-{source.version}/{source.root}/"
    folder = TARGET / source.name
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(archive) as members:
        for member in members:
            path = PurePosixPath(member.name.removeprefix(root))
            if member.isfile() and member.name.startswith(root) and path.parts[0] in source.files:
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                content = members.extractfile(member)
                assert content is not None and ".." not in path.parts
                target.write_bytes(content.read())


if __name__ == "__main__":
    main()
