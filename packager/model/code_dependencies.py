"""What the user's code consists of: the files it imports, the files it reads, the packages it uses.

A build sees this while the code runs: `watched` notes the modules that appear and, through Python's
audit events (PEP 578), the files that are opened. The next build asks of the same files whether they
are as they were, without running any of them: every file is compared by digest, every package by version
and RECORD, and every folder that modules came from by the names that could be imported from it, so that a
new file in the place of another module is seen.

What is read by code that is not Python, listed, asked for by existence alone, or decided by the
environment, is not seen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

from packager.common import distributions
from packager.common.paths import PACKAGE

_IGNORED_PREFIXES = ("/proc/", "/sys/")
_BINARY_SUFFIXES = (".pyc", ".so")
_TOOLCHAIN = ("torch", "numpy", "onnx", "onnxscript", "onnxsim", "onnxruntime", "packager")  # every stage names them
_SEARCH_BOUNDARY = frozenset({*sys.stdlib_module_names, *_TOOLCHAIN})


@dataclass(frozen=True)
class CodeDependencies:
    """Modules by name, files that were read, and folders that were searched: paths, relative to the manifest's
    folder where they lie in it. `packages` are the distributions that the code uses; `placed` says that another
    folder, or another working directory, might have made it another footprint.
    """

    modules: Mapping[str, str]
    read_files: tuple[str, ...]
    searched_folders: tuple[str, ...]
    packages: tuple[str, ...]
    location_dependent: bool

    def merge(self, other: CodeDependencies) -> CodeDependencies:
        """Both together, of the same code."""
        return CodeDependencies(
            {**self.modules, **other.modules},
            tuple(sorted({*self.read_files, *other.read_files})),
            tuple(sorted({*self.searched_folders, *other.searched_folders})),
            tuple(sorted({*self.packages, *other.packages})),
            self.location_dependent or other.location_dependent,
        )

    def locate_files(self, folder: Path) -> dict[str, Path]:
        """Where every input that is a digest of a file lies."""
        return {
            **{f"code:{name}": folder / path for name, path in self.modules.items()},
            **{f"read:{path}": folder / path for path in self.read_files},
        }

    def collect_inputs(self, folder: Path, sha256: Callable[[Path], str]) -> dict[str, str]:
        """What of it decides about a build, as text by name. Raises OSError."""
        return {
            **{name: sha256(path) for name, path in self.locate_files(folder).items()},
            **{f"importable:{path}": list_importable(folder / path) for path in self.searched_folders},
            **{f"package:{name}": distributions.distribution_identity(name, sha256) for name in self.packages},
        }

    def list_project_files(self) -> dict[str, str]:
        """What a bundle's code digest covers: the modules, and what was read from the manifest's own folder."""
        return {**self.modules, **{path: path for path in self.read_files if not os.path.isabs(path)}}


def list_importable(folder: Path) -> str:
    """The names that can be imported from a folder. Raises OSError."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".py", ".so")):
                found.append(entry.name)
            elif entry.is_dir() and entry.name.isidentifier() and entry.name != "__pycache__":
                with os.scandir(entry.path) as inner:
                    found += [f"{entry.name}/"] if any(one.name.endswith(".py") for one in inner) else []
    return " ".join(sorted(found))


@dataclass(frozen=True)
class DependencyTracker:
    """What tells what was seen so far: the footprint, and which of its files were changed since they were read."""

    collect: Callable[[], CodeDependencies]
    list_changed: Callable[[], list[str]]


@contextmanager
def track_dependencies(folder: Path, entry: str, excluded: Sequence[Path]) -> Iterator[DependencyTracker]:
    """While open, note what is imported and read.

    `entry` is the module that the manifest names; `known` are files and folders that are accounted for
    elsewhere. A file that was written before it was read is the code's own, and no input; likewise a module
    that the code wrote to the temporary folder before importing it, as its text follows from the other inputs.
    """
    before, path_before = dict(sys.modules), {*sys.path}
    elsewhere = (*_IGNORED_PREFIXES, *_installed_prefixes(), *(f"{path}/" for path in excluded))
    heard = _FileAccesses({}, {str(path) for path in excluded}, set())
    _install_hook()
    _ACTIVE.append(heard)

    def footprint() -> CodeDependencies:
        loaded = find_imported(before)
        generated = {name: path for name, path in loaded.items() if _is_generated(path, folder, heard.written)}
        modules = {name: path for name, path in loaded.items() if name not in generated}
        own = {_absolute(path) for path in loaded.values()}
        # A generated file that was there before is an input, but its module is not part of the bundle's code digest.
        earlier = [path for path in map(_absolute, generated.values()) if path not in heard.written]
        others = [*earlier, *(one for one in heard.read if one not in own)]
        others = [one for one in others if not one.startswith(elsewhere) and _is_data_file(one)]
        searched = {Path(one) for one in sys.path if one not in path_before and os.path.isdir(one)}
        searched -= {path.parent for path in generated.values()}
        searched |= {folder, *(path.parent for path in modules.values())}
        reached = _find_used_packages([sys.modules[name] for name in {*loaded, entry} if name in sys.modules])
        packages, loose = _find_distributions(reached - {name.partition(".")[0] for name in modules})
        paths = {_display_path(Path(one), folder) for one in (*others, *(one for one in loose if one not in own))}
        folders = {_display_path(one, folder) for one in searched}
        named = {name: _display_path(path, folder) for name, path in sorted(modules.items())}
        placed = any(os.path.isabs(one) for one in (*paths, *folders, *named.values()))
        placed = placed or any(one in heard.relative for one in others)
        return CodeDependencies(named, tuple(sorted(paths)), tuple(sorted(folders)), packages, placed)

    def changed() -> list[str]:
        return sorted(
            _display_path(Path(one), folder)
            for one, status in heard.read.items()
            if one not in heard.written
            and not one.startswith(elsewhere)
            and _is_data_file(one)
            and status != _stat_file(one)
        )

    try:
        yield DependencyTracker(footprint, changed)
    finally:
        _ACTIVE.remove(heard)


def find_imported(before: Mapping[str, object]) -> dict[str, Path]:
    """The user's own module files among those that are imported now and were not `before`."""
    prefixes, found = _installed_prefixes(), {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if before.get(name) is module or file is None or name.partition(".")[0] == "packager":
            continue
        path = Path(file).absolute()
        if path.suffix == ".py" and not str(path).startswith(prefixes):
            found[name] = path
    return found


def _is_generated(path: Path, folder: Path, written: Collection[str]) -> bool:
    """Whether the user's code wrote the file of this module while it ran, now or in an earlier process.

    Now: `written` has it, and it lies in the temporary folder or is deleted already. Earlier: it lies in the
    temporary folder where no entry of `sys.path` leads to it. The project's own `folder` is never temporary.
    """
    import tempfile  # an unchanged build does without it

    temporary = Path(tempfile.gettempdir())
    is_temporary = relative_inside(path, temporary) is not None and relative_inside(path, folder) is None
    if _absolute(path) in written:
        return is_temporary or not path.exists()
    searched = [Path(entry) for entry in sys.path if Path(entry).absolute() != temporary]
    return is_temporary and not any(relative_inside(path, entry) for entry in searched)


def _installed_prefixes() -> tuple[str, ...]:
    import sysconfig  # likewise

    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    return tuple(sorted(f"{path}/" for path in (*paths, str(PACKAGE))))


def _find_used_packages(modules: Sequence[ModuleType]) -> set[str]:
    """The top-level names of all modules that these ones use, and those in turn, whoever imported them first.

    What a module uses stands in its namespace: other modules, and the classes and functions of others. The
    search ends at the standard library and at the tools, whose versions every stage names anyway.
    """
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        for value in list(vars(waiting.pop()).values()):
            if isinstance(value, ModuleType):
                name = value.__name__
            elif isinstance(value, (type, FunctionType)):
                name = value.__module__
            else:
                continue
            top = str(name).partition(".")[0]
            found.add(top)
            if name not in seen and top not in _SEARCH_BOUNDARY and name in sys.modules:
                waiting.append(sys.modules[name])
            seen.add(name)
    return found - {"packager", "builtins", "__future__"}


def _find_distributions(names: set[str]) -> tuple[tuple[str, ...], list[str]]:
    """The distributions that modules come from, and the files of those that come from none."""
    from importlib import metadata  # which takes longer than a build that has nothing to do

    known = metadata.packages_distributions()
    wanted = names - _SEARCH_BOUNDARY
    found = {distribution for name in wanted for distribution in known.get(name, ())}
    files = [getattr(sys.modules.get(name), "__file__", None) for name in wanted if name not in known]
    return tuple(sorted(found)), [one for one in files if one is not None]


def relative_inside(path: str | Path, folder: Path) -> Path | None:
    """The path from the folder on, where it lies in it: a folder that was reached over a link has two names."""
    for root in (folder, folder.resolve()):
        if Path(path).is_relative_to(root):
            return Path(path).relative_to(root)
    return None


def _display_path(path: Path, folder: Path) -> str:
    return (relative_inside(path, folder) or path).as_posix()


def _is_data_file(name: str) -> bool:
    return not name.endswith(_BINARY_SUFFIXES) and os.path.isfile(name)


def _stat_file(path: str) -> tuple[int, int, int] | None:
    """What tells whether a file is still the one that it was."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


# -- the audit hook, which cannot be taken out again ------------------------------------------


@dataclass(eq=False)
class _FileAccesses:
    """Files that were read, each with its status then; that were written; and that were named relatively."""

    read: dict[str, tuple[int, int, int] | None]
    written: set[str]
    relative: set[str]


_ACTIVE: list[_FileAccesses] = []
_HOOK_INSTALLED: list[bool] = []


def _install_hook() -> None:
    if not _HOOK_INSTALLED:
        sys.addaudithook(_audit_hook)
        _HOOK_INSTALLED.append(True)


def _audit_hook(event: str, arguments: tuple[object, ...]) -> None:
    if not _ACTIVE:
        return
    if event == "open":
        name, _, flags = arguments
        if isinstance(flags, int) and isinstance(name, (str, bytes, os.PathLike)):
            _hear_open(os.fsdecode(name), flags)
    elif event == "os.rename":
        names = [_absolute(os.fsdecode(one)) for one in arguments[:2] if isinstance(one, (str, bytes, os.PathLike))]
        for heard in _ACTIVE:
            if names[0] in heard.written:
                heard.written.add(names[-1])


def _hear_open(given: str, flags: int) -> None:
    path = _absolute(given)
    status = _stat_file(path)  # before it is opened
    if flags & os.O_EXCL and status is not None:
        return  # which fails
    writes = flags & os.O_ACCMODE == os.O_WRONLY or flags & os.O_TRUNC
    creates = flags & os.O_CREAT and status is None  # those of tempfile are open for reading too
    for heard in _ACTIVE:
        if writes or creates:
            heard.written.add(path)
        elif path not in heard.written:
            heard.read.setdefault(path, status)
            if not os.path.isabs(given):
                heard.relative.add(path)


def _absolute(given: str | Path) -> str:
    path = os.path.join(os.getcwd(), given)
    # `..` behind a link leads elsewhere than it reads.
    return os.path.realpath(path) if ".." in Path(path).parts else os.path.normpath(path)
