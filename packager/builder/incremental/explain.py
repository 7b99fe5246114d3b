"""Why a stage ran: its inputs compared with those of the last build of the same manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from packager.builder.incremental.store import CacheKey

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Explanation:
    """One stage: cached, or the reasons why it ran."""

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
    """Explain every stage. `last_inputs` are the key's inputs in the last build, by stage."""
    return tuple(_explain_stage(key, cached_stages, last_inputs, cache_used=cache_used) for key in keys)


def _explain_stage(
    key: CacheKey, cached_stages: frozenset[str], last_inputs: Mapping[str, Mapping[str, str]], *, cache_used: bool
) -> Explanation:
    if key.stage in cached_stages:
        return Explanation(key.stage, True, ())
    reasons = _explain_miss(key, cached_stages, last_inputs) if cache_used else ("the cache was not used",)
    return Explanation(key.stage, False, reasons)


def _explain_miss(
    key: CacheKey, cached_stages: frozenset[str], last_inputs: Mapping[str, Mapping[str, str]]
) -> tuple[str, ...]:
    before = last_inputs.get(key.stage)
    if before is None:
        return ("no earlier build is known",)
    names = dict.fromkeys([*before, *key.inputs])
    changed = tuple(
        f"{name}: {_abbreviate(before.get(name))} → {_abbreviate(key.inputs.get(name))}"
        for name in names
        if before.get(name) != key.inputs.get(name)
    )
    if not changed and key.stage.endswith(" parity") and "reference" not in cached_stages:
        return ("the reference was measured again, with the same result",)
    return changed or ("nothing changed, but it is no longer in the cache",)


def _abbreviate(value: str | None) -> str:
    if value is None:
        return "none"
    plain = value.strip('"')
    if _SHA256.fullmatch(plain):
        return f"{plain[:12]}…"
    try:
        decoded = json.loads(value)
    except ValueError:
        return value
    return decoded if isinstance(decoded, str) else value
