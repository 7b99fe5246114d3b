"""The least of a host that an executable needs, out of Debian's packages: for chroots, and for qemu-user."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOWNLOADS = ROOT / "runner/work/userlands"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
LOADERS = {"amd64": "/lib64/ld-linux-x86-64.so.2", "arm64": "/lib/ld-linux-aarch64.so.1"}
FOLDERS = {"amd64": "/lib/x86_64-linux-gnu", "arm64": "/lib/aarch64-linux-gnu"}
# docs/standalone.md lists these.
LIBRARIES = [
    "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libstdc++.so.6", "libgcc_s.so.1",
]  # fmt: skip


def need(condition, reason):
    """Skip the test without what it needs; CI has all of it, and fails."""
    if not condition:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def make_root(folder, suite, architecture):
    """Fill a folder with ld.so and the libraries of a release of Debian, and nothing else."""
    packages = unpack_packages(suite, architecture)
    loader = LOADERS[architecture]
    for source, target in [
        (Path(loader).name, loader),
        *((name, f"{FOLDERS[architecture]}/{name}") for name in LIBRARIES),
    ]:
        found = min(path for path in packages.rglob(source) if path.exists())
        (folder / target[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(found, folder / target[1:])
    return folder


def unpack_packages(suite, architecture):
    """Return a folder with the files of the packages of a release of Debian, which apt-get downloads once."""
    target = DOWNLOADS / f"{suite}-{architecture}"
    if (target / "complete").exists():
        return target / "files"
    need(shutil.which("apt-get") and Path(KEYRING).exists(), "needs Debian's apt-get and its keyring")
    shutil.rmtree(target, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial", "packages", "files"):
        (target / name).mkdir(parents=True)
    (target / "status").touch()
    (target / "sources.list").write_text(f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n")
    settings = {
        "Dir::Etc::SourceList": target / "sources.list", "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": target / "lists", "Dir::State::status": target / "status", "Dir::Cache": target / "cache",
        "APT::Architecture": architecture, "APT::Architectures": architecture, "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(option for name, value in settings.items() for option in ("-o", f"{name}={value}"))]
    for command in ([*apt, "update"], [*apt, "download", "libc6", "libstdc++6", "libgcc-s1"]):
        subprocess.run(command, cwd=target / "packages", check=True, capture_output=True)
    for package in sorted((target / "packages").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, target / "files"], check=True)
    (target / "complete").touch()
    return target / "files"
