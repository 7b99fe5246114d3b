"""Two records side by side, field by field: whatever JSON can say, and nothing is left out.

A list whose members have names of their own (tensors, cases, stages) is compared by name, and its order
once; a list of plain values is one value. Equal is what is written the same: 1, 1.0 and true are three.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest

from packager.differences.report import Difference

_ABSENT = object()


def find_differences(before: object, after: object, where: str = "") -> Iterator[Difference]:
    """Every field that differs, in the order of the record; a field that one side has not is None there."""
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _compare_mappings(before, after, where)
    elif isinstance(before, list) and isinstance(after, list) and _has_containers(before, after):
        left, right = _index_by_name(before), _index_by_name(after)
        if left is None or right is None:
            for index, (one, other) in enumerate(zip_longest(before, after, fillvalue=_ABSENT)):
                yield from _compare_members(one, other, f"{where}[{index}]")
            return
        yield from _compare_mappings(left, right, where)
        if [name for name in left if name in right] != [name for name in right if name in left]:
            yield Difference(where, list(left), list(right))
    elif json.dumps(before) != json.dumps(after):
        yield Difference(where, before, after)


def _compare_mappings(before: dict[str, object], after: dict[str, object], where: str) -> Iterator[Difference]:
    for name in (*before, *(one for one in after if one not in before)):
        place = f"{where}.{name}" if where else name
        yield from _compare_members(before.get(name, _ABSENT), after.get(name, _ABSENT), place)


def _compare_members(before: object, after: object, where: str) -> Iterator[Difference]:
    if before is _ABSENT:
        yield Difference(where, None, after)
    elif after is _ABSENT:
        yield Difference(where, before, None)
    else:
        yield from find_differences(before, after, where)


def _has_containers(*lists: list[object]) -> bool:
    return any(isinstance(one, (dict, list)) for members in lists for one in members)


def _index_by_name(members: list[object]) -> dict[str, object] | None:
    """The members by their names, each without it; None where they have none of their own."""
    found: dict[str, object] = {}
    for one in members:
        name = one.get("name") if isinstance(one, dict) else None
        if not isinstance(one, dict) or not isinstance(name, str) or name in found:
            return None
        found[name] = {key: value for key, value in one.items() if key != "name"}
    return found
