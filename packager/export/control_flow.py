"""What a trace takes for good: the branches and numbers that come from data, by the line that took them.

torch warns of most of them, in the name of the innermost line of Python. Of some it does not warn, such as a tensor
that counts or indexes (`range(n)`, `layers[n]`): those functions are watched. Where that line is torch's own, it is
the user's for what torch does in the user's name (`x in tensor`), and of no interest where torch checks its arguments;
nor is a check of the user's whose other side only raises. A line among installed packages is theirs (transformers has
a few in each model) and kept apart, as nobody here can change it.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from packager.common.paths import PACKAGE

_UNWARNED = ("equal", "allclose")  # of torch and of Tensor: they give a Python bool, and no warning
_TRANSPARENT_TORCH_FILES = ("_tensor.py", "container.py")  # of torch's files: `x in tensor`, `layers[n]`
_OWN_FOLDER = f"{PACKAGE}{os.sep}"


@dataclass(frozen=True)
class SpecializedControlFlow:
    """Lines such as `model.py:13`, and `transformers/masking_utils.py:244` in `libraries`; sorted.

    `rounded` are those where a size comes of a number that float32 has not, 0.7 or 0.1: PyTorch rounds the size in
    float64, onnxruntime's Resize and Range in float32, which is another size now and then.
    """

    user_lines: tuple[str, ...] = ()
    library_lines: tuple[str, ...] = ()
    rounded_size_lines: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """What is not checked because of them."""
        found = [f"the branch or number that {place} takes from other data" for place in self.user_lines]
        if self.library_lines:
            found.append(
                f"the branches and numbers that libraries take from other data: {', '.join(self.library_lines)}"
            )
        return [
            *found,
            *(f"the sizes at which float32 rounds otherwise what {place} scales" for place in self.rounded_size_lines),
        ]

    def merge(self, other: SpecializedControlFlow) -> SpecializedControlFlow:
        """These and those."""
        return SpecializedControlFlow(
            tuple(sorted({*self.user_lines, *other.user_lines})),
            tuple(sorted({*self.library_lines, *other.library_lines})),
            tuple(sorted({*self.rounded_size_lines, *other.rounded_size_lines})),
        )


@contextmanager
def record_control_flow() -> Iterator[Callable[[], SpecializedControlFlow]]:
    """While open, a trace is watched; the call gives what it took. Warnings belong to the process, so one at a time."""
    import torch

    own: set[str] = set()
    libraries: set[str] = set()

    def note() -> None:
        library, place = _find_user_line(f"{Path(torch.__file__).parent}{os.sep}")
        if place:
            (libraries if library else own).add(place)

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if category.__name__ == "TracerWarning":
            note()

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            note()
            return real(*arguments, **named)

        return call

    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("always")
        warnings.showwarning = show
        for owner in (torch, torch.Tensor):
            for name in _UNWARNED:
                stack.enter_context(_patch_attribute(owner, name, watched(getattr(owner, name))))
        stack.enter_context(_patch_attribute(torch.Tensor, "__index__", watched(torch.Tensor.__index__)))
        size: Any = torch.Tensor.nbytes
        stack.enter_context(_patch_attribute(torch.Tensor, "nbytes", property(watched(size.__get__))))
        yield lambda: SpecializedControlFlow(tuple(sorted(own)), tuple(sorted(libraries)))


@contextmanager
def _patch_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:  # it was inherited
            delattr(owner, name)


def _find_user_line(torch_folder: str) -> tuple[bool, str]:
    """The line that takes a number from data, and whether it is an installed one; empty where it only checks."""
    skipped = (_OWN_FOLDER, str(Path(warnings.__file__)), str(Path(contextlib.__file__)), "<")
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
    library, name = name_source_file(frame.f_code.co_filename)
    return library, f"{name}:{frame.f_lineno}"


def _only_raises(path: str, line: int) -> bool:
    """Whether a line is an assertion, or a condition under which an error is raised and nothing else done."""
    text, following = (linecache.getline(path, number).strip() for number in (line, line + 1))
    return text.startswith("assert ") or (text.startswith("if ") and following.startswith("raise "))


def name_source_file(path: str) -> tuple[bool, str]:
    """Whether a file is an installed one, and what it is called: `transformers/masking_utils.py`, `model.py`."""
    *before, name = Path(path).parts
    for installed in ("site-packages", "dist-packages"):
        if installed in before:
            return True, "/".join((*before[before.index(installed) + 1 :], name))
    return False, name if name != "__init__.py" else f"{before[-1]}/{name}"
