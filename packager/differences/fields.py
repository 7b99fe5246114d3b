"""Compare two JSON values field by field.

A list whose members have unique names (tensors, cases, stages) is compared by name, and its order separately; a
list of plain values counts as one value. Values are equal if they are written the same: 1, 1.0 and true differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest

from packager.differences.report import Difference

_ABSENT = object()


def find_differences(before: object, after: object, where: str = "") -> Iterator[Difference]:
    """Yield every field that differs, in the order of the record. A field that one side lacks is None there.

    `where` is the path of the two values in their record, which the paths of the fields are appended to.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _compare_mappings(before, after, where)
    elif isinstance(before, list) and isinstance(after, list) and _has_containers(before, after):
        left, right = _index_by_name(before), _index_by_name(after)
        if left is None or right is None:
            for index, members in enumerate(zip_longest(before, after, fillvalue=_ABSENT)):
                yield from _compare_members(*members, f"{where}[{index}]")
            return
        yield from _compare_mappings(left, right, where)
        if [name for name in left if name in right] != [name for name in right if name in left]:
            yield Difference(where, list(left), list(right))
    elif json.dumps(before) != json.dumps(after):
        yield Difference(where, before, after)


def _compare_mappings(before: dict[str, object], after: dict[str, object], where: str) -> Iterator[Difference]:
    for name in before | after:
        path = f"{where}.{name}" if where else name
        yield from _compare_members(before.get(name, _ABSENT), after.get(name, _ABSENT), path)


def _compare_members(before: object, after: object, where: str) -> Iterator[Difference]:
    if before is _ABSENT:
        yield Difference(where, None, after)
    elif after is _ABSENT:
        yield Difference(where, before, None)
    else:
        yield from find_differences(before, after, where)


def _has_containers(*lists: list[object]) -> bool:
    return any(isinstance(member, (dict, list)) for members in lists for member in members)


def _index_by_name(members: list[object]) -> dict[str, object] | None:
    """Return the members by name, without the name; None unless all of them have unique names."""
    by_name: dict[str, object] = {}
    for member in members:
        name = member.get("name") if isinstance(member, dict) else None
        if not isinstance(member, dict) or not isinstance(name, str) or name in by_name:
            return None
        by_name[name] = {key: value for key, value in member.items() if key != "name"}
    return by_name
