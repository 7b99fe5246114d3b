"""Find out what the user's code depends on: the files it imports, the files it reads, and the packages it uses.

A build observes this while the code runs: `track_dependencies` notes the modules that appear in `sys.modules` and the
files that are opened. The next build checks whether the same files are unchanged without running any of them: files
are compared by digest, packages by version and RECORD, and folders from which modules were imported by the names that
can be imported from them, because a new file may take precedence over one that was imported.

What the environment decides is not seen, nor what `file_accesses` cannot see.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from packager.common import installed_distributions
from packager.common.paths import PACKAGE
from packager.model.file_accesses import FileAccesses, normalize_path, record_file_accesses, stat_file

_IGNORED_PREFIXES = ("/proc/", "/sys/")
_BINARY_SUFFIXES = (".pyc", ".so")
_TOOLCHAIN = ("torch", "numpy", "onnx", "onnxscript", "onnxsim", "onnxruntime", "packager")  # part of every cache key
_SEARCH_BOUNDARY = frozenset({*sys.stdlib_module_names, *_TOOLCHAIN})


@dataclass(frozen=True)
class CodeDependencies:
    """What the user's code depends on.

    `modules` are files by module name. Paths are relative to the manifest's folder if they lie in it. `packages` are
    the names of distributions. `location_dependent` says that the dependencies may change with the project folder or
    the working directory.
    """

    modules: Mapping[str, str]
    read_files: tuple[str, ...]
    searched_folders: tuple[str, ...]
    packages: tuple[str, ...]
    location_dependent: bool

    def merge(self, other: CodeDependencies) -> CodeDependencies:
        """Return the dependencies of both, which are of the same code."""
        return CodeDependencies(
            {**self.modules, **other.modules},
            tuple(sorted({*self.read_files, *other.read_files})),
            tuple(sorted({*self.searched_folders, *other.searched_folders})),
            tuple(sorted({*self.packages, *other.packages})),
            self.location_dependent or other.location_dependent,
        )

    def locate_files(self, folder: Path) -> dict[str, Path]:
        """Return the path of every input that is compared by its digest; `folder` is the manifest's."""
        return {
            **{f"code:{name}": folder / path for name, path in self.modules.items()},
            **{f"read:{path}": folder / path for path in self.read_files},
        }

    def collect_inputs(self, folder: Path, sha256: Callable[[Path], str]) -> dict[str, str]:
        """Return everything that the cache key has to cover, as text by name. Raises OSError."""
        return {
            **{name: sha256(path) for name, path in self.locate_files(folder).items()},
            **{f"importable:{path}": list_importable(folder / path) for path in self.searched_folders},
            **{
                f"package:{name}": installed_distributions.distribution_identity(name, sha256) for name in self.packages
            },
        }

    def list_project_files(self) -> dict[str, str]:
        """Return what a bundle's code digest covers: the modules, and the files read from the manifest's own folder."""
        return {**self.modules, **{path: path for path in self.read_files if not Path(path).is_absolute()}}


def list_importable(folder: Path) -> str:
    """Return the names that can be imported from a folder, separated by spaces. Raises OSError."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".py", ".so")):
                names.append(entry.name)
            elif entry.is_dir() and entry.name.isidentifier() and entry.name != "__pycache__":
                with os.scandir(entry.path) as children:
                    names += [f"{entry.name}/"] if any(child.name.endswith(".py") for child in children) else []
    return " ".join(sorted(names))


@dataclass(frozen=True)
class DependencyTracker:
    """What `track_dependencies` has observed so far, with the modules and `sys.path` from before."""

    folder: Path
    entry: str
    modules_before: Mapping[str, ModuleType]
    search_path_before: frozenset[str]
    ignored_prefixes: tuple[str, ...]
    accesses: FileAccesses

    def collect(self) -> CodeDependencies:
        """Return the dependencies observed so far."""
        loaded = find_imported(self.modules_before)
        generated = {
            name: path for name, path in loaded.items() if _is_generated(path, self.folder, self.accesses.written)
        }
        modules = {name: path for name, path in loaded.items() if name not in generated}
        searched = {Path(path) for path in sys.path if path not in self.search_path_before and _is_folder(path)}
        searched -= {path.parent for path in generated.values()}
        searched |= {self.folder, *(path.parent for path in modules.values())}
        used = _find_used_packages([sys.modules[name] for name in {*loaded, self.entry} if name in sys.modules])
        packages, loose_files = _find_distributions(used - {name.partition(".")[0] for name in modules})
        module_files = {normalize_path(path) for path in loaded.values()}
        # A generated file from an earlier run is an input, but its module is not part of the bundle's code digest.
        inputs = [path for path in map(normalize_path, generated.values()) if path not in self.accesses.written]
        inputs += [path for path in self.accesses.read if path not in module_files]
        inputs = [path for path in inputs if self._is_input(path)]
        loose_files = [path for path in loose_files if path not in module_files]
        read_files = {_display_path(Path(path), self.folder) for path in (*inputs, *loose_files)}
        folders = {_display_path(path, self.folder) for path in searched}
        module_paths = {name: _display_path(path, self.folder) for name, path in sorted(modules.items())}
        is_outside = any(Path(path).is_absolute() for path in (*read_files, *folders, *module_paths.values()))
        location_dependent = is_outside or any(path in self.accesses.relative for path in inputs)
        return CodeDependencies(
            module_paths, tuple(sorted(read_files)), tuple(sorted(folders)), packages, location_dependent
        )

    def list_changed(self) -> list[str]:
        """Return the files that have been changed since they were read, by anything but the code itself."""
        return sorted(
            _display_path(Path(path), self.folder)
            for path, status in self.accesses.read.items()
            if path not in self.accesses.written and self._is_input(path) and status != stat_file(path)
        )

    def _is_input(self, path: str) -> bool:
        if path.startswith(self.ignored_prefixes) or path.endswith(_BINARY_SUFFIXES):
            return False
        return os.path.isfile(path)  # noqa: PTH113 (Path.is_file() raises PermissionError)


@contextmanager
def track_dependencies(folder: Path, entry: str, excluded: Sequence[Path]) -> Iterator[DependencyTracker]:
    """Observe what is imported and read while the block runs.

    `folder` is the manifest's, `entry` the module that it names, and `excluded` are files and folders that other parts
    of the cache key cover. A file that the code wrote before reading it is not an input. Neither is a module that the
    code wrote to the temporary folder before importing it, since its text follows from the other inputs.
    """
    ignored = (*_IGNORED_PREFIXES, *_installed_prefixes(), *(f"{path}/" for path in excluded))
    with record_file_accesses(excluded) as accesses:
        yield DependencyTracker(folder, entry, dict(sys.modules), frozenset(sys.path), ignored, accesses)


def find_imported(before: Mapping[str, object]) -> dict[str, Path]:
    """Return the user's modules that are imported now and were not in `before`, a copy of `sys.modules`, by name."""
    prefixes, files = _installed_prefixes(), {}
    for name, module in list(sys.modules.items()):
        file = _find_source(module)
        if before.get(name) is module or file is None or name.partition(".")[0] == "packager":
            continue
        path = Path(file).absolute()
        if path.suffix == ".py" and not str(path).startswith(prefixes):
            files[name] = path
    return files


def _is_generated(path: Path, folder: Path, written: Collection[str]) -> bool:
    """Return whether the user's code wrote the file of this module while running, now or in an earlier process.

    Now: it is in `written`, and lies in the temporary folder or has been deleted. Earlier: it lies in the temporary
    folder, and no entry of `sys.path` leads to it. The project's own `folder` never counts as temporary.
    """
    import tempfile  # not needed by an unchanged build

    temporary = Path(tempfile.gettempdir())
    is_temporary = relative_inside(path, temporary) is not None and relative_inside(path, folder) is None
    if normalize_path(path) in written:
        return is_temporary or not path.exists()
    searched = [Path(entry) for entry in sys.path if Path(entry).absolute() != temporary]
    return is_temporary and not any(relative_inside(path, entry) for entry in searched)


def _installed_prefixes() -> tuple[str, ...]:
    import sysconfig  # not needed by an unchanged build

    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    return tuple(sorted(f"{path}/" for path in (*paths, str(PACKAGE))))


def _find_used_packages(modules: Sequence[object]) -> set[str]:
    """Return the top-level names of all modules that these use, directly or not, even if imported earlier.

    A module's namespace shows what it uses: other modules, and the classes and functions of others. The search ends
    at the standard library and at the toolchain, whose versions are part of every cache key.
    """
    top_level_names: set[str] = set()
    seen: set[str] = set()
    pending = list(modules)
    while pending:
        for value in list(_namespace(pending.pop()).values()):
            if isinstance(value, ModuleType):
                name = value.__name__
            elif isinstance(value, (type, FunctionType)):
                name = value.__module__
            else:
                continue
            top_level_name = str(name).partition(".")[0]
            top_level_names.add(top_level_name)
            if name not in seen and top_level_name not in _SEARCH_BOUNDARY and name in sys.modules:
                pending.append(sys.modules[name])
            seen.add(name)
    return top_level_names - {"packager", "builtins", "__future__"}


def _find_distributions(names: set[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the distributions of top-level modules, and the files of the modules that belong to none."""
    names = names - _SEARCH_BOUNDARY
    if not names:  # most models: finding the distribution of every installed module takes 0.2 s
        return (), []
    from importlib import metadata  # takes longer than a build that has nothing to do

    distributions_by_module = metadata.packages_distributions()
    packages = {package for name in names for package in distributions_by_module.get(name, ())}
    files = [_find_source(sys.modules.get(name)) for name in names if name not in distributions_by_module]
    return tuple(sorted(packages)), [file for file in files if file is not None]


def _find_source(module: object) -> str | None:
    """Return the file that a module was loaded from; None if it has none."""
    file = _namespace(module).get("__file__")
    return file if isinstance(file, str) else None


def _namespace(module: object) -> Mapping[str, Any]:
    """Return the attributes that an entry of `sys.modules` has now.

    The entry can be any object. A lazy module, as SpeechBrain has, imports its target when it is asked for an
    attribute, and that import may fail.
    """
    try:
        namespace: Mapping[str, Any] = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return {}
    return namespace


def relative_inside(path: str | Path, folder: Path) -> Path | None:
    """Return the path relative to a folder; None if it is not inside. The folder may have been reached by a link."""
    for root in (folder, folder.resolve()):
        if Path(path).is_relative_to(root):
            return Path(path).relative_to(root)
    return None


def _display_path(path: Path, folder: Path) -> str:
    return (relative_inside(path, folder) or path).as_posix()


def _is_folder(path: str) -> bool:
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir() raises PermissionError, and takes "" for the current one)
