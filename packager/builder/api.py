"""The public entry to a build, and the check whether there is anything to do at all.

A bundle that is already there and up to date is found without importing anything heavy, not even what reads a
manifest: see `packager.builder.incremental.up_to_date`. Everything else is `packager.builder.pipeline`.
"""

from __future__ import annotations

from pathlib import Path

from packager.builder.build_result import BuildResult
from packager.builder.context import BuildOptions, CacheMode, LockMode
from packager.builder.incremental import up_to_date
from packager.builder.incremental.explain import Explanation
from packager.common.cache import Cache, CacheUnavailable, open_cache
from packager.common.progress import Listener, StageName, StageReporter, ignore_event


def build(
    path: str | Path,
    out: str | Path = "dist",
    *,
    force: bool = False,
    archive: bool = False,
    cache: CacheMode = "use",
    lock: LockMode = "check",
    check: bool = False,
    diagnose: bool = False,
    listener: Listener = ignore_event,
) -> BuildResult:
    """Build the bundle of a manifest into `out/NAME-VERSION`, replacing an earlier one in one step.

    `force` lets it replace something that is not a bundle. `archive` also writes `out/NAME-VERSION.zip`. `cache` is
    `"use"`, `"verify"` (build everything, and fail if the cache held different results) or `"off"` (no cache except for
    downloads). `lock` says whether package.lock is compared, written, or must agree. `check` builds a second time in
    another process and folder, and fails if a byte differs. If no graph is proven, `diagnose` lets the search for the
    node at fault take as long as it needs, instead of 30 s. `listener` is called with the events of
    `packager.common.progress`.

    Raises the errors of `packager.errors`; then nothing is left behind, and an earlier bundle stays as it was.
    """
    path, out, reporter = Path(path), Path(out), StageReporter(listener)
    store = None if cache == "off" else _open_cache(reporter)
    if store is not None and cache == "use" and lock == "check" and not archive and not check:
        result = _find_up_to_date(store, path, out, reporter)
        if result is not None:
            return result
    from packager.builder import pipeline

    return pipeline.build(path, out, BuildOptions(force, archive, cache, lock, check, diagnose), store, reporter)


def _open_cache(reporter: StageReporter) -> Cache | None:
    try:
        return open_cache()
    except CacheUnavailable as error:
        reporter.report_note(f"building without the cache: {error}")
        return None


def _find_up_to_date(cache: Cache, manifest: Path, out: Path, reporter: StageReporter) -> BuildResult | None:
    """Return the bundle that lies in `out` if a build would give the same bytes, else None."""
    in_place = up_to_date.find_up_to_date(cache, manifest, out)
    if in_place is None:
        return None
    reporter.report_cached(StageName.BUNDLE)
    return BuildResult(
        bundle=out / in_place.name,
        archive=None,
        fingerprint=in_place.bundle.fingerprint,
        cached=True,
        parity=in_place.bundle.parity,
        stages=reporter.seconds,
        recalled=frozenset(reporter.cached),
        facts=in_place.summary,
        notes=tuple(reporter.notes),
        explanation=(Explanation("bundle", True, ()),),
    )
