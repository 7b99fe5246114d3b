"""`package build`, from the outside: what a build gives, and the choice between nothing to do and a build.

Nothing heavy is imported for a bundle that is there already: see `packager.builder.incremental.up_to_date`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packager.builder.incremental import up_to_date
from packager.builder.incremental.explain import Explanation
from packager.common.cache_store import Cache, Unusable, opened
from packager.common.progress import Listener, Stages, silent

CacheUse = Literal["use", "verify", "off"]
LockUse = Literal["check", "write", "require"]


@dataclass(frozen=True)
class BuildResult:
    """A bundle that was built and proven.

    `cached` says that it came out of the cache as a whole; `parity` is the verdict of each backend;
    `stages` are seconds of the wall clock by stage, in order, and `recalled` those that the cache had;
    `facts` are what the closing table shows; `explanation` says why each stage was done, or was not.
    """

    bundle: Path
    archive: Path | None
    fingerprint: str
    cached: bool
    parity: Mapping[str, str]
    stages: Mapping[str, float]
    recalled: frozenset[str]
    facts: Mapping[str, str]
    explanation: tuple[Explanation, ...]

    def as_json(self) -> dict[str, object]:
        """The object that `package build --json` prints."""
        return {
            "bundle": str(self.bundle),
            "archive": str(self.archive) if self.archive is not None else None,
            "fingerprint": self.fingerprint,
            "cached": self.cached,
            "stages": [
                {"name": name, "cached": name in self.recalled, "seconds": round(seconds, 3)}
                for name, seconds in self.stages.items()
            ],
            "parity": dict(self.parity),
        }


def build(
    path: str | Path,
    out: str | Path = "dist",
    *,
    force: bool = False,
    archive: bool = False,
    cache: CacheUse = "use",
    lock: LockUse = "check",
    check: bool = False,
    listener: Listener = silent,
) -> BuildResult:
    """Build the bundle of a manifest into `out/NAME-VERSION`, replacing an earlier one in one step.

    `force` lets it replace something that is not a bundle; `archive` writes `out/NAME-VERSION.zip` too;
    `cache="verify"` builds everything anew and refuses where the cache held something else, `"off"` leaves
    the cache alone, but for downloads; `lock` is whether package.lock is compared, written, or must agree;
    `check` builds a second time, elsewhere, and refuses other bytes; `listener` hears of the progress.
    Raises the errors of `packager.errors`: nothing is left behind then.
    """
    path, out, stages = Path(path), Path(out), Stages(listener)
    store = None if cache == "off" else _open_cache(stages)
    if store is not None and cache == "use" and lock == "check" and not archive and not check:
        result = _restore_up_to_date(store, path, out, stages)
        if result is not None:
            return result
    from packager.builder import driver

    return driver.build(path, out, driver.How(force, archive, cache, lock, check), store, stages)


def _open_cache(stages: Stages) -> Cache | None:
    try:
        return opened()
    except Unusable as why:
        stages.tell(f"built without the cache: {why}")
        return None


def _restore_up_to_date(store: Cache, path: Path, out: Path, stages: Stages) -> BuildResult | None:
    found = up_to_date.unchanged(store, path, out)
    if found is None:
        return None
    name, entry = found
    stages.recall("bundle")
    return BuildResult(
        bundle=out / name,
        archive=None,
        fingerprint=str(entry.record["fingerprint"]),
        cached=True,
        parity=entry.record["parity"],
        stages=stages.seconds,
        recalled=frozenset(stages.recalled),
        facts=entry.record["facts"],
        explanation=(Explanation("bundle", True, ()),),
    )
