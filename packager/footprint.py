"""What the user's code consists of: the files it imported, the files it read, the packages it used.

A build sees this while the code runs: `watched` notes the modules that appear and, through Python's
audit events (PEP 578), the files that are opened. The next build asks of the same files whether they
are as they were, without running any of them. Three things make an answer of yes safe: every file is
compared by digest; every package by version; and a new file that would now be imported in the place of
another module is looked for by name.

What is read by code that is not Python (a C++ reader), or decided by the environment, is not seen.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packager import installed

_NEVER = ("/proc/", "/sys/", "/dev/")
_BEYOND_PYTHON = (".pyc", ".so")


@dataclass(frozen=True)
class Footprint:
    """The files by module name or by path, relative to the manifest's folder where they lie in it.

    `packages` are versions by distribution; `names` are the top-level modules that came from elsewhere.
    """

    modules: Mapping[str, str]
    data: tuple[str, ...]
    packages: Mapping[str, str]
    names: tuple[str, ...]

    def joined(self, other: Footprint) -> Footprint:
        """Both together, of the same code."""
        return Footprint(
            {**self.modules, **other.modules},
            tuple(sorted({*self.data, *other.data})),
            {**self.packages, **other.packages},
            tuple(sorted({*self.names, *other.names})),
        )

    def shadowed(self, folder: Path) -> bool:
        """Whether the folder has a file now that would be imported in the place of a module from elsewhere."""
        return any((folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists() for name in self.names)

    def files(self, folder: Path) -> dict[str, Path]:
        """Where every input that is a digest lies."""
        return {
            **{f"code:{name}": folder / path for name, path in self.modules.items()},
            **{f"read:{path}": folder / path for path in self.data},
        }

    def inputs(self, folder: Path, sha256: Callable[[Path], str]) -> dict[str, str]:
        """What of it decides about a build, as text by name. Raises OSError."""
        return {
            **{name: sha256(path) for name, path in self.files(folder).items()},
            **{f"package:{name}": installed.version(name) for name in self.packages},
        }

    def own_files(self) -> dict[str, str]:
        """What a bundle's code digest covers: the modules, and what was read from the manifest's own folder."""
        return {**self.modules, **{path: path for path in self.data if not os.path.isabs(path)}}


@contextmanager
def watched(folder: Path, known: Sequence[Path]) -> Iterator[Callable[[], Footprint]]:
    """While open, note what is imported and read; yields what tells it.

    `known` are files and folders that are accounted for elsewhere; what was written meanwhile is no input.
    """
    before = dict(sys.modules)
    elsewhere = (*_NEVER, *_prefixes(), *(f"{path}/" for path in known))
    heard = _Heard(set(), {str(path) for path in known})
    _install_hook()
    _LISTENING.append(heard)

    def footprint() -> Footprint:
        modules = imported(before)
        others = heard.read - heard.written - {str(path) for path in modules.values()}
        data = {_relative(Path(name), folder) for name in others if not name.startswith(elsewhere) and _is_data(name)}
        new = {name.partition(".")[0] for name, module in list(sys.modules.items()) if before.get(name) is not module}
        names = new - {name.partition(".")[0] for name in modules} - {"packager"}
        return Footprint(
            {name: _relative(path, folder) for name, path in sorted(modules.items())},
            tuple(sorted(data)),
            _versions(names),
            tuple(sorted(names)),
        )

    try:
        yield footprint
    finally:
        _LISTENING.remove(heard)


def imported(before: Mapping[str, object]) -> dict[str, Path]:
    """The user's own module files among those that are imported now and were not `before`."""
    prefixes, found = _prefixes(), {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if before.get(name) is module or file is None or name.partition(".")[0] == "packager":
            continue
        path = Path(file).absolute()
        if path.suffix == ".py" and not str(path).startswith(prefixes):
            found[name] = path
    return found


def _prefixes() -> tuple[str, ...]:
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    return tuple(sorted(f"{path}/" for path in (*paths, sys.prefix, sys.base_prefix, str(Path(__file__).parent))))


def _versions(names: set[str]) -> dict[str, str]:
    known = metadata.packages_distributions()
    found = {distribution for name in names for distribution in known.get(name, ())}
    return {distribution: installed.version(distribution) for distribution in sorted(found - {"packager"})}


def inside(path: str | Path, folder: Path) -> Path | None:
    """The path from the folder on, where it lies in it: a folder that was reached over a link has two names."""
    for root in (folder, folder.resolve()):
        if Path(path).is_relative_to(root):
            return Path(path).relative_to(root)
    return None


def _relative(path: Path, folder: Path) -> str:
    return (inside(path, folder) or path).as_posix()


def _is_data(name: str) -> bool:
    return not name.endswith(_BEYOND_PYTHON) and os.path.isfile(name)


# -- the audit hook, which cannot be taken out again ------------------------------------------


@dataclass(eq=False)
class _Heard:
    read: set[str]
    written: set[str]


_LISTENING: list[_Heard] = []
_HOOKED: list[bool] = []


def _install_hook() -> None:
    if not _HOOKED:
        sys.addaudithook(_hear)
        _HOOKED.append(True)


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _LISTENING:
        return
    name, _, flags = arguments
    if isinstance(flags, int) and isinstance(name, (str, bytes)):
        path = os.path.abspath(os.fsdecode(name))
        for heard in _LISTENING:
            (heard.read if flags & os.O_ACCMODE == os.O_RDONLY else heard.written).add(path)
