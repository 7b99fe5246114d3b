"""Report the control flow that a trace fixes: the branches and numbers it takes from data, by source line.

torch warns of most of them, on behalf of the innermost Python line. It does not warn when a tensor counts or indexes
(`range(n)`, `layers[n]`) or is compared as a whole (`torch.equal`), so those functions are patched while a trace runs.
A size that bounds a slice, as in `x[: y.size(1)]`, is asked for its value too, but a trace records the slice with the
size as it is: the traced graph shows which.
If the innermost line is torch's own, it counts as the user's where torch acts for the user (`x in tensor`), and is
ignored where torch checks its arguments. A check in the user's code, whose other branch only raises, is ignored too.
A line of an installed package is kept apart, because the user cannot change it (transformers has a few in each model).
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from packager.common.paths import PACKAGE

_UNWARNED_FUNCTIONS = ("equal", "allclose")  # of torch and of Tensor: they return a Python bool without a warning
_TRANSPARENT_TORCH_FILES = ("_tensor.py", "container.py")  # torch's code for `x in tensor` and `layers[n]`


@dataclass(frozen=True)
class SpecializedControlFlow:
    """Source lines whose control flow was fixed at trace time, each tuple sorted and without duplicates.

    `user_lines` are those of the user's code (`model.py:13`), `library_lines` those of installed packages
    (`transformers/masking_utils.py:244`). `rounded_size_lines` compute a size with a number that float32 cannot
    represent, such as 0.7 or 0.1: PyTorch rounds that size in float64, onnxruntime's Resize and Range in float32,
    which is sometimes a different size. `undetected` says that the module could not be traced, so that nobody knows.
    """

    user_lines: tuple[str, ...] = ()
    library_lines: tuple[str, ...] = ()
    rounded_size_lines: tuple[str, ...] = ()
    undetected: bool = False

    def describe(self) -> list[str]:
        """Describe what the parity check did not check because of these lines, an item each."""
        items = [f"branches or numbers other than those that {line} took from the example" for line in self.user_lines]
        if self.library_lines:
            lines = ", ".join(self.library_lines)
            items.append(f"branches or numbers other than those that libraries took from the example: {lines}")
        items += [f"sizes that {line} scales to a different size in float32" for line in self.rounded_size_lines]
        if self.undetected:
            lines = "branches or numbers that forward() takes from data, and sizes that it scales"
            items.append(f"{lines}: tracing finds them, and the module cannot be traced")
        return items

    def merge(self, other: SpecializedControlFlow) -> SpecializedControlFlow:
        """Return the lines of both."""
        return SpecializedControlFlow(
            tuple(sorted({*self.user_lines, *other.user_lines})),
            tuple(sorted({*self.library_lines, *other.library_lines})),
            tuple(sorted({*self.rounded_size_lines, *other.rounded_size_lines})),
            self.undetected or other.undetected,
        )


@contextmanager
def record_control_flow() -> Iterator[Callable[[Mapping[str, int]], SpecializedControlFlow]]:
    """Record the lines that take a branch or number from data, and yield a function that returns them.

    It takes the number of bounds of slices that the traced graph computes, by source line: these are not fixed.
    Warnings and patches belong to the process: use it for one trace at a time, in one thread.
    """
    import torch

    torch_folder = f"{Path(torch.__file__).parent}{os.sep}"
    user_lines: set[str] = set()
    library_lines: set[str] = set()
    index_calls: Counter[tuple[bool, str]] = Counter()  # by line, and whether it is installed

    def record_line() -> None:
        installed, line = _find_source_line(torch_folder)
        if line:
            (library_lines if installed else user_lines).add(line)

    def show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:  # noqa: ARG001 (its name is fixed)
        if category.__name__ == "TracerWarning":
            record_line()

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            record_line()
            return function(*args, **kwargs)

        return call

    def record_index(tensor: Any) -> Any:
        index_calls[_find_source_line(torch_folder)] += 1
        return index(tensor)

    def get_control_flow(dynamic_bounds: Mapping[str, int]) -> SpecializedControlFlow:
        fixed = [key for key, calls in index_calls.items() if key[1] and calls > dynamic_bounds.get(key[1], 0)]
        in_code, in_libraries = ({line for where, line in fixed if where is installed} for installed in (False, True))
        return SpecializedControlFlow(tuple(sorted(user_lines | in_code)), tuple(sorted(library_lines | in_libraries)))

    index: Any = torch.Tensor.__index__
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("always")
        warnings.showwarning = show_warning
        for owner in (torch, torch.Tensor):
            for name in _UNWARNED_FUNCTIONS:
                stack.enter_context(_patch_attribute(owner, name, recording(getattr(owner, name))))
        stack.enter_context(_patch_attribute(torch.Tensor, "__index__", record_index))
        nbytes: Any = torch.Tensor.nbytes
        stack.enter_context(_patch_attribute(torch.Tensor, "nbytes", property(recording(nbytes.__get__))))
        yield get_control_flow


@contextmanager
def _patch_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    inherited, before = name not in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _find_source_line(torch_folder: str) -> tuple[bool, str]:
    """Find the calling line that takes a value from data, and whether it is installed; empty for a mere check."""
    skipped = (f"{PACKAGE}{os.sep}", str(Path(warnings.__file__)), str(Path(contextlib.__file__)), "<")
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(skipped):
        frame = frame.f_back
    while frame is not None and frame.f_code.co_filename.startswith(torch_folder):
        if Path(frame.f_code.co_filename).name not in _TRANSPARENT_TORCH_FILES:
            return False, ""
        frame = frame.f_back
    if frame is None:
        return False, "forward()"
    if _only_raises(frame.f_code.co_filename, frame.f_lineno):
        return False, ""
    installed, name = name_source_file(frame.f_code.co_filename)
    return installed, f"{name}:{frame.f_lineno}"


def _only_raises(path: str, line: int) -> bool:
    """Tell whether a line is an assertion, or a condition under which an error is raised and nothing else done."""
    text, following = (linecache.getline(path, number).strip() for number in (line, line + 1))
    return text.startswith("assert ") or (text.startswith("if ") and following.startswith("raise "))


def name_source_file(path: str) -> tuple[bool, str]:
    """Tell whether a file is installed, and name it: `transformers/masking_utils.py`, or the user's `model.py`."""
    *folders, name = Path(path).parts
    for installed in ("site-packages", "dist-packages"):
        if installed in folders:
            return True, "/".join((*folders[folders.index(installed) + 1 :], name))
    return False, name if name != "__init__.py" else f"{folders[-1]}/{name}"
