"""Import the user's code and find the entry in it: the callable that `model.entry` names.

The code is imported unchanged, with the manifest's folder on `sys.path`, and removed from `sys.modules` afterwards,
so that one process can build two projects that both have a `model.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from packager.common.paths import PACKAGE
from packager.errors import EntryImportFailed, EntryNotFound, EntryNotModule, did_you_mean
from packager.model import code_dependencies
from packager.project import preflight
from packager.project.manifest import Project


@contextmanager
def import_path(folder: Path) -> Iterator[None]:
    """Put `folder` first on `sys.path` while the block runs; afterwards, remove the user's modules again.

    `sys.path` and the working directory are restored as well: the cache key is computed from them before the user's
    code runs, and the entry has to be stored under the same key.
    """
    modules, search_path, entries, directory = dict(sys.modules), sys.path, list(sys.path), Path.cwd()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for name in code_dependencies.find_imported(modules):
            if name in modules:
                sys.modules[name] = modules[name]
            else:
                del sys.modules[name]
        search_path[:] = entries
        sys.path = search_path  # the code may have assigned a different list
        os.chdir(directory)


def get_entry_name(project: Project) -> str:
    """Return `model.entry` as written in the manifest, such as `model.py:Net`; empty if the manifest has none."""
    return project.manifest.model.entry or ""


def resolve_entry(project: Project) -> Callable[..., Any]:
    """Import the file or module that `model.entry` names, and return the callable in it.

    Raises `EntryNotFound`, `EntryImportFailed` or `EntryNotModule`.
    """
    entry, where = get_entry_name(project), project.field_location("model", "entry")
    source, _, attribute = entry.rpartition(":")
    try:
        module = _import_file(project, source) if source.endswith(".py") else _import_name(project, source)
    except EntryNotFound:
        raise
    except (Exception, SystemExit) as error:
        raise EntryImportFailed(entry, where, format_user_frame(error, project.folder)) from error
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise EntryNotFound(entry, where, f"{source} has no {part!r}", _suggest_attribute(target, part, module))
        target = getattr(target, part)
    if not callable(target) or isinstance(target, torch.nn.Module):
        raise EntryNotModule(entry, where, f"{attribute} is an instance of {type(target).__name__}")
    callable_entry: Callable[..., Any] = target
    return callable_entry


def _suggest_attribute(target: Any, part: str, module: ModuleType) -> str | None:
    """Return a hint with the nearest callable of the target, preferably one that the user's module defines."""
    public = [name for name, value in vars(target).items() if not name.startswith("_") and callable(value)]
    defined_here = [name for name in public if getattr(vars(target)[name], "__module__", "") == module.__name__]
    return did_you_mean(part, defined_here or public[:20])


def _import_file(project: Project, source: str) -> ModuleType:
    entry, where = get_entry_name(project), project.field_location("model", "entry")
    # Links are not followed, because code may ask for the folder of its file.
    path = Path(os.path.abspath(project.folder / source))  # noqa: PTH100 (resolve() follows links)
    if not path.is_file():
        files = sorted(str(file.relative_to(project.folder)) for file in project.folder.glob("*.py"))
        raise EntryNotFound(entry, where, f"there is no file {path}", did_you_mean(source, files))
    target = preflight.find_target_outside(project, path)
    if target is not None:
        raise EntryNotFound(entry, where, preflight.describe_outside(target), preflight.OUTSIDE_HINT)
    # The module is named after the file alone, not its path: the name ends up in TorchScript's class names.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise EntryNotFound(entry, where, f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    shadowed = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit):
        if shadowed is not None:
            sys.modules[path.stem] = shadowed
        raise
    return module


def _import_name(project: Project, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that the user's code imports
        where, hint = project.field_location("model", "entry"), None
        if (project.folder / f"{name}.py").exists():
            hint = f"write {name}.py:…"
        raise EntryNotFound(get_entry_name(project), where, f"there is no module {name!r}", hint) from None


def format_user_frame(error: BaseException, folder: Path) -> str:
    """Return the last line of the user's own code in a traceback, with the message: `model.py:12 in forward: …`.

    `folder` is the manifest's; if no frame lies in it, the last frame outside this package is used.
    """
    if isinstance(error, SyntaxError) and error.filename is not None:  # a file that does not compile has no frame
        line = f"\n  {error.text.strip()}" if error.text else ""
        return f"{Path(error.filename).name}:{error.lineno}{line}\n{type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    in_folder = [frame for frame in frames if code_dependencies.relative_inside(frame.filename, folder)]
    message = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    candidates = in_folder or [frame for frame in frames if str(PACKAGE) not in frame.filename]
    if not candidates:
        return message
    frame = candidates[-1]
    line = f"\n  {frame.line}" if frame.line else ""
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}{line}\n{message}"
