"""What a comparison found, as values, as JSON and as text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packager.differences.tensors import TensorChange

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_WIDTH = 60
_CONTEXT_BEFORE = 20
_MAX_LINES = 20


@dataclass(frozen=True)
class Difference:
    """One thing that differs: where, and its value in A and in B as JSON has it; None: not there.

    `change` says how far apart two tensors are that have the same dtype and shape.
    """

    where: str
    before: object
    after: object
    change: TensorChange | None = None

    def as_json(self) -> dict[str, object]:
        """The difference as JSON has it."""
        found = {"where": self.where, "before": _to_json(self.before), "after": _to_json(self.after)}
        return found if self.change is None else {**found, "change": self.change.as_json()}

    def text(self) -> str:
        """What became of what, in one line."""
        if self.change is not None:
            return f"{self.before}, {self.change.text(relative=True)}"
        before, after = format_pair(self.before, self.after)
        if self.before is None:
            return f"added: {after}"
        return f"removed: {before}" if self.after is None else f"{before} → {after}"


@dataclass(frozen=True)
class Section:
    """The differences of one kind. `not_compared` is the reason why there may be more; empty: there are none."""

    name: str
    differences: tuple[Difference, ...] = ()
    not_compared: str = ""


@dataclass(frozen=True)
class Side:
    """One of the two bundles; `damage` says in lines how its files are not those that SHA256SUMS lists."""

    name: str
    version: str
    fingerprint: str
    damage: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiffReport:
    """What differs between the bundles A and B."""

    before: Side
    after: Side
    sections: tuple[Section, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs. What was not compared lies in files whose digests differ: no "perhaps" is left."""
        return not any(one.differences for one in self.sections) and self.before.damage == self.after.damage

    def as_json(self) -> dict[str, object]:
        """The object that `package diff --json` prints."""
        sides = {
            name: {
                "name": side.name, "version": side.version, "fingerprint": side.fingerprint, "damage": list(side.damage)
            }
            for name, side in (("before", self.before), ("after", self.after))
        }  # fmt: skip
        sections = {
            one.name: {
                "differences": [difference.as_json() for difference in one.differences],
                "not_compared": one.not_compared or None,
            }
            for one in self.sections
        }
        return {"same": self.same, **sides, "sections": sections}

    def lines(self) -> Iterator[str]:
        """The report as text; a section with many differences is cut short, and says so."""
        for letter, side in (("A", self.before), ("B", self.after)):
            yield f"{letter}  {format_value(side.name)} {format_value(side.version)}  {side.fingerprint or 'no fingerprint'}"
            yield from (f"{letter}  {line}" for line in side.damage)
        for section in self.sections:
            if section.differences or section.not_compared:
                yield from ("", section.name)
            if section.not_compared:
                yield f"  not compared: {section.not_compared}"
            yield from _format_rows(section.differences)
        if self.same:
            yield "the same"


def _format_rows(differences: tuple[Difference, ...]) -> Iterator[str]:
    rows = [(format_value(one.where), one.text()) for one in differences[:_MAX_LINES]]
    width = max((len(where) for where, _ in rows), default=0)
    yield from (f"  {where:<{width}}  {text}" for where, text in rows)
    if len(differences) > _MAX_LINES:
        yield f"  … and {len(differences) - _MAX_LINES} more, which --json lists"


# -- values as text -------------------------------------------------------------------------


def format_pair(before: object, after: object) -> tuple[str, str]:
    """Two values as short texts that differ where the values do."""
    if isinstance(before, float) and isinstance(after, float):
        digits = next((one for one in range(2, 17) if f"{before:.{one}g}" != f"{after:.{one}g}"), 17)
        return f"{before:.{digits}g}", f"{after:.{digits}g}"
    left, right = format_value(before), format_value(after)
    common = common_prefix_length(left, right)
    return _excerpt(left, common), _excerpt(right, common)


def common_prefix_length(left: str | bytes, right: str | bytes) -> int:
    """Where two texts part: the length of what they begin with in common."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(left), len(right)))


def format_value(value: object) -> str:
    """A value as text without control characters; a digest is cut to twelve of its digits."""
    if value is None:
        return "none"
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if _DIGEST.fullmatch(value):
        return f"{value[:12]}…"
    return value if value and value.isprintable() else json.dumps(value)


def _excerpt(text: str, common: int) -> str:
    """What stands around the first difference."""
    start = max(0, common - _CONTEXT_BEFORE) if len(text) > _MAX_WIDTH else 0
    end = start + _MAX_WIDTH
    return ("…" if start else "") + text[start:end] + ("…" if len(text) > end else "")


def _to_json(value: object) -> object:
    """The value, with the strings of the records for what JSON has not."""
    if isinstance(value, dict):
        return {name: _to_json(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_to_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
