"""Restore a whole bundle from the cache. Needs neither torch nor onnx."""

from __future__ import annotations

from packager.builder import finish, lockfile
from packager.builder.build_result import BuildResult
from packager.builder.context import BuildRequest
from packager.builder.incremental import keys
from packager.builder.incremental.bundle_entry import check_bundle_entry
from packager.builder.incremental.explain import Explanation
from packager.builder.incremental.inputs import BuildInputs
from packager.builder.incremental.store import CacheEntry, look_up
from packager.bundle import layout, restore
from packager.bundle.writer import BundleWriter, stage_bundle
from packager.common.cache import Cache
from packager.common.progress import StageName
from packager.project import preflight


def restore_cached_bundle(request: BuildRequest, inputs: BuildInputs | None) -> BuildResult | None:
    """Put the bundle that an earlier build made from these inputs in its place; None if the cache lacks it.

    An entry that cannot be the bundle of these inputs counts as absent. Files that are already in place are left alone.
    Raises `LockDrifted` or `OutputRefused`.
    """
    cache = request.cache
    if inputs is None or cache is None:
        return None
    assets = preflight.resolve_assets(request.project)
    key = keys.make_bundle_key(request.project, inputs.module_inputs, assets, cache.file_digest)
    entry = look_up(cache, key, files=False)
    if entry is None:
        return None
    in_place = restore.is_restored(request.target, entry.files, cache.file_digest)
    if not in_place and look_up(cache, key) is None:
        return None
    config_path = request.target / layout.CONFIG
    bundle = check_bundle_entry(
        key, entry, config_path if in_place else cache.object_path(entry.files.get(layout.CONFIG, ""))
    )
    if bundle is None:
        return None
    lock = lockfile.make_lockfile(inputs.module_inputs, bundle.config, entry.files, bundle.fingerprint)
    agrees = finish.check_lockfile(request, lock)
    if not in_place and not _restore_files(request, entry, cache):
        return None
    request.reporter.report_cached(StageName.BUNDLE)
    finish.write_lockfile_and_archive(request, lock)
    if agrees:
        finish.remember_build(request, key, inputs.dependencies)
    explanation = (Explanation("bundle", True, ()),)
    summary = entry.record["summary"]
    return finish.make_result(request, bundle.fingerprint, bundle.parity, summary, explanation, cached=True)


def _restore_files(request: BuildRequest, entry: CacheEntry, cache: Cache) -> bool:
    """Write the bundle from the cache; return False if a file in the cache is damaged."""
    staged = stage_bundle(request.output, request.name, force=request.options.force)
    try:
        with request.reporter.stage(StageName.RESTORE), staged as scratch:
            restore.restore_bundle(BundleWriter(scratch / "bundle"), entry.files, cache.object_path)
    except restore.CachedFileDamaged:
        return False
    return True
