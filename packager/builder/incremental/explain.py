"""Why a stage was done, or not: its inputs beside those of the last build of the same manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packager.common.cache_store import CacheKey

_DIGEST_LENGTH = 64


@dataclass(frozen=True)
class Explanation:
    """One stage: found in the cache, or the reasons for doing it."""

    stage: str
    cached: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.stage}: {'cached' if self.cached else '; '.join(self.reasons)}"


def explain(
    keys: Sequence[CacheKey],
    cached_stages: frozenset[str],
    last_inputs: Mapping[str, Mapping[str, str]],
    *,
    cache_used: bool,
) -> tuple[Explanation, ...]:
    """Explain every stage. `last` are the inputs of the last build by stage; `asked` is whether the cache was."""
    return tuple(
        Explanation(one.stage, True, ())
        if one.stage in cached_stages
        else Explanation(
            one.stage,
            False,
            _explain_miss(one, cached_stages, last_inputs) if cache_used else ("the cache was not asked",),
        )
        for one in keys
    )


def _explain_miss(action: CacheKey, found: frozenset[str], last: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    before = last.get(action.stage)
    if before is None:
        return ("nothing is known of a build before",)
    names = dict.fromkeys([*before, *action.inputs])
    changed = tuple(
        f"{name}: {_abbreviate(before.get(name))} → {_abbreviate(action.inputs.get(name))}"
        for name in names
        if before.get(name) != action.inputs.get(name)
    )
    if not changed and action.stage.endswith(" parity") and "reference" not in found:
        return ("the reference was measured again, and came out the same",)
    return changed or ("nothing changed; it is in the cache no more",)


def _abbreviate(value: str | None) -> str:
    if value is None:
        return "none"
    plain = value.strip('"')
    if len(plain) == _DIGEST_LENGTH and all(one in "0123456789abcdef" for one in plain):
        return f"{plain[:12]}…"
    try:
        decoded = json.loads(value)
    except ValueError:
        return value
    return value if not isinstance(decoded, str) else decoded
