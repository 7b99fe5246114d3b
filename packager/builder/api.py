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
from packager.common.cache_store import Cache, CacheUnavailable, open_cache
from packager.common.progress import Listener, StageName, StageReporter, ignore_event

CacheMode = Literal["use", "verify", "off"]
LockMode = Literal["check", "write", "require"]


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
    cache: CacheMode = "use",
    lock: LockMode = "check",
    check: bool = False,
    listener: Listener = ignore_event,
) -> BuildResult:
    """Build the bundle of a manifest into `out/NAME-VERSION`, replacing an earlier one in one step.

    `force` lets it replace something that is not a bundle; `archive` writes `out/NAME-VERSION.zip` too;
    `cache="verify"` builds everything anew and refuses where the cache held something else, `"off"` leaves
    the cache alone, but for downloads; `lock` is whether package.lock is compared, written, or must agree;
    `check` builds a second time, elsewhere, and refuses other bytes; `listener` hears of the progress.
    Raises the errors of `packager.errors`: nothing is left behind then.
    """
    path, out, stages = Path(path), Path(out), StageReporter(listener)
    store = None if cache == "off" else _open_cache(stages)
    if store is not None and cache == "use" and lock == "check" and not archive and not check:
        result = _restore_up_to_date(store, path, out, stages)
        if result is not None:
            return result
    from packager.builder import driver

    return driver.build(path, out, driver.BuildOptions(force, archive, cache, lock, check), store, stages)


def _open_cache(stages: StageReporter) -> Cache | None:
    try:
        return open_cache()
    except CacheUnavailable as why:
        stages.report_note(f"built without the cache: {why}")
        return None


def _restore_up_to_date(store: Cache, path: Path, out: Path, stages: StageReporter) -> BuildResult | None:
    found = up_to_date.find_up_to_date(store, path, out)
    if found is None:
        return None
    name, entry = found
    stages.report_cached(StageName.BUNDLE)
    return BuildResult(
        bundle=out / name,
        archive=None,
        fingerprint=str(entry.record["fingerprint"]),
        cached=True,
        parity=entry.record["parity"],
        stages=stages.seconds,
        recalled=frozenset(stages.cached),
        facts=entry.record["facts"],
        explanation=(Explanation("bundle", True, ()),),
    )
