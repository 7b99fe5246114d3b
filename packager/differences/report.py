"""The result of a comparison, as values, as JSON and as text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packager.differences.tensors import TensorChange

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_WIDTH = 60
_CONTEXT_BEFORE = 20
_MAX_LINES = 20


@dataclass(frozen=True)
class Difference:
    """One difference: its path, and the JSON values in A and in B; None if a side lacks it.

    `change` measures the difference between two tensors of the same dtype and shape.
    """

    where: str
    before: object
    after: object
    change: TensorChange | None = None

    def as_json(self) -> dict[str, object]:
        """Return the difference as an object for `--json`."""
        fields = {"where": self.where, "before": _to_json(self.before), "after": _to_json(self.after)}
        return fields if self.change is None else {**fields, "change": self.change.as_json()}

    def text(self) -> str:
        """Describe the two values in one line, such as `1 → 2`."""
        if self.change is not None:
            return f"{self.before}, {self.change.text(relative=True)}"
        before, after = format_pair(self.before, self.after)
        if self.before is None:
            return f"added: {after}"
        return f"removed: {before}" if self.after is None else f"{before} → {after}"


@dataclass(frozen=True)
class Section:
    """The differences of one kind. `not_compared` says why there may be more; empty if everything was compared."""

    name: str
    differences: tuple[Difference, ...] = ()
    not_compared: str = ""


@dataclass(frozen=True)
class Side:
    """One of the two bundles; `damage` lists in lines how its files differ from SHA256SUMS."""

    name: str
    version: str
    fingerprint: str
    damage: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return the bundle as an object for `--json`."""
        return {**asdict(self), "damage": list(self.damage)}


@dataclass(frozen=True)
class DiffReport:
    """The differences between the bundles A (`before`) and B (`after`)."""

    before: Side
    after: Side
    sections: tuple[Section, ...]

    @property
    def same(self) -> bool:
        """Return whether nothing differs. Files that could not be compared have different digests, which count."""
        return not any(section.differences for section in self.sections) and self.before.damage == self.after.damage

    def as_json(self) -> dict[str, object]:
        """Return the object that `package diff --json` prints."""
        sections = {
            section.name: {
                "differences": [difference.as_json() for difference in section.differences],
                "not_compared": section.not_compared or None,
            }
            for section in self.sections
        }
        return {
            "same": self.same,
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "sections": sections,
        }

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text; a section with many differences is truncated, and says so."""
        for letter, side in (("A", self.before), ("B", self.after)):
            fingerprint = side.fingerprint or "no fingerprint"
            yield f"{letter}  {format_value(side.name)} {format_value(side.version)}  {fingerprint}"
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
    rows = [(format_value(difference.where), difference.text()) for difference in differences[:_MAX_LINES]]
    width = max((len(where) for where, _ in rows), default=0)
    yield from (f"  {where:<{width}}  {text}" for where, text in rows)
    if len(differences) > _MAX_LINES:
        yield f"  … and {len(differences) - _MAX_LINES} more, which --json lists"


# -- values as text -------------------------------------------------------------------------


def format_pair(before: object, after: object) -> tuple[str, str]:
    """Return two values as short texts that show where the values differ."""
    if isinstance(before, float) and isinstance(after, float):
        digits = next((count for count in range(2, 17) if f"{before:.{count}g}" != f"{after:.{count}g}"), 17)
        return f"{before:.{digits}g}", f"{after:.{digits}g}"
    left, right = format_value(before), format_value(after)
    common = common_prefix_length(left, right)
    return _excerpt(left, common), _excerpt(right, common)


def common_prefix_length(left: str | bytes, right: str | bytes) -> int:
    """Return the length of the longest common prefix of two texts, or of two byte strings."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (before, after) in pairs if before != after), min(len(left), len(right)))


def format_value(value: object) -> str:
    """Return a JSON value as text without control characters; a digest is shortened to twelve digits."""
    if value is None:
        return "none"
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if _DIGEST.fullmatch(value):
        return f"{value[:12]}…"
    return value if value and value.isprintable() else json.dumps(value)


def _excerpt(text: str, common: int) -> str:
    """Cut a long text to what surrounds the first difference."""
    start = max(0, common - _CONTEXT_BEFORE) if len(text) > _MAX_WIDTH else 0
    end = start + _MAX_WIDTH
    return ("…" if start else "") + text[start:end] + ("…" if len(text) > end else "")


def _to_json(value: object) -> object:
    """Replace NaN and infinities, which JSON lacks, by the strings that the records use."""
    if isinstance(value, dict):
        return {name: _to_json(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_to_json(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
