"""A build that has something to do.

    identify     checkpoint, code, tools and machine: everything that goes in, by digest and version
    recall       the cache is asked for the bundle, or else for what each stage made of the same inputs
    find out     what is left, with torch and onnx: `packager.builder.pipeline`
    assemble     records written, sealed, verified, held against the lock, kept, renamed into place

A bad manifest is answered before torch is imported, and the ONNX side starts importing its half of the
toolchain while this process imports torch and the user's code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packager.builder import lockfile
from packager.builder.api import BuildResult, CacheMode, LockMode
from packager.builder.incremental import explain, inputs, keys, up_to_date
from packager.builder.incremental.explain import Explanation
from packager.builder.incremental.inputs import BuildInputs
from packager.builder.incremental.up_to_date import lockfile_path
from packager.builder.lockfile import Lockfile
from packager.bundle import layout, restore
from packager.bundle.writer import (
    BundleWriter,
    check_archive_target,
    check_bundle_target,
    stage_bundle,
    translate_os_errors,
)
from packager.checkpoint.locate import FileVersion, LocatedCheckpoint
from packager.checkpoint.remote import urls
from packager.common import process_memory
from packager.common.cache_store import Cache, CacheEntry, CacheKey, describe_write_error
from packager.common.hashing import sha256_file
from packager.common.progress import StageName, StageReporter
from packager.errors import BuildNotRepeatable, CacheDiffers, ExtraMissing, InputChanged
from packager.project import manifest, preflight
from packager.project.manifest import Project

if TYPE_CHECKING:
    from packager.builder.assemble import SealedBundle
    from packager.builder.incremental.stage_cache import CacheLookup, CacheWrite
    from packager.builder.results import StageResults
    from packager.export.passes.worker import OnnxWorker
    from packager.model.code_dependencies import CodeDependencies
    from packager.parity.cases.sample_grid import Grid


@dataclass(frozen=True)
class BuildOptions:
    """How a build is done, which changes nothing of what it makes: see `packager.builder.api.build`."""

    force: bool
    archive: bool
    cache: CacheMode
    lock: LockMode
    check: bool


@dataclass(frozen=True)
class _BuildRequest:
    """One build: of what, to where and how, with which cache, and who listens.

    `out` is absolute, whatever the user's code makes the working directory; `shown` is as it was given.
    """

    project: Project
    checkpoint: LocatedCheckpoint
    out: Path
    shown: Path
    name: str
    how: BuildOptions
    store: Cache | None
    stages: StageReporter

    @property
    def manifest(self) -> Path:
        """The manifest's absolute path."""
        return self.project.folder / self.project.path.name

    def sha256(self, path: Path) -> str:
        """The digest of a file, from the cache's memory where there is one."""
        return sha256_file(path) if self.store is None else self.store.file_digest(path)


def build(path: Path, out: Path, options: BuildOptions, cache: Cache | None, stages: StageReporter) -> BuildResult:
    """Build, and keep what is new in `store`. Raises the errors of `packager.errors`."""
    project = manifest.load_manifest(path)
    name = layout.folder_name(project.manifest.name, project.manifest.version)
    check_bundle_target(out / name, force=options.force)
    if options.archive:
        check_archive_target(out / f"{name}.zip", force=options.force)
    preflight.resolve_assets(project)
    if options.lock != "write":
        lockfile.check_lockfile_present(project.folder / project.path.name, required=options.lock == "require")
    with preflight.fetch_checkpoint(project, stages) as project:
        checkpoint = preflight.check_project_files(project)
        result = _build(_BuildRequest(project, checkpoint, out.absolute(), out, name, options, cache, stages))
    if cache is not None:
        cache.trim()
    return result


def _build(job: _BuildRequest) -> BuildResult:
    """From the cache as a whole, or as far as it has it not."""
    store = job.store
    asked = job.how.cache == "use" and not job.how.check
    found = inputs.find_build_inputs(job.project, job.checkpoint, store) if store is not None and asked else None
    result = _from_cache(job, store, found) if store is not None and found is not None else None
    return _anew(job, found) if result is None else result


def _result(
    job: _BuildRequest,
    fingerprint: str,
    parity: Mapping[str, str],
    facts: Mapping[str, str],
    explanation: tuple[Explanation, ...],
    *,
    cached: bool,
) -> BuildResult:
    return BuildResult(
        bundle=job.shown / job.name,
        archive=job.shown / f"{job.name}.zip" if job.how.archive else None,
        fingerprint=fingerprint,
        cached=cached,
        parity=parity,
        stages=job.stages.seconds,
        recalled=frozenset(job.stages.cached),
        facts=facts,
        explanation=explanation,
    )


# -- the whole bundle from the cache --------------------------------------------------------


def _from_cache(job: _BuildRequest, store: Cache, found: BuildInputs) -> BuildResult | None:
    """The bundle as an earlier build made it; None where the cache has it no more."""
    action = keys.make_bundle_key(
        job.project, found.module_inputs, preflight.resolve_assets(job.project), store.file_digest
    )
    entry = store.look_up(action, files=False)
    if entry is None:
        return None
    record, target = entry.record, job.out / job.name
    lock = Lockfile.model_validate(record["lock"])
    agrees = _hold_against_lock(job, lock)
    if not restore.is_restored(target, entry.files, store.file_digest):
        if store.look_up(action) is None:
            return None
        try:
            with job.stages.stage(StageName.RESTORE), stage_bundle(job.out, job.name, force=job.how.force) as folder:
                restore.restore_bundle(BundleWriter(folder / "bundle"), entry.files, store.object_path)
        except restore.CachedFileDamaged:
            return None
    job.stages.report_cached(StageName.BUNDLE)
    _beside(job, target, lock)
    explanation = (Explanation("bundle", True, ()),)
    if agrees:
        _remember(job, store, action, found.dependencies)
    return _result(job, str(record["fingerprint"]), record["parity"], record["facts"], explanation, cached=True)


# -- built, as far as it is not known -------------------------------------------------------


@dataclass(frozen=True)
class _StagedBundle:
    """A bundle on its way: its cases, what the cache knew, the scratch folder, and the writer that fills it."""

    grid: Grid
    recalled: CacheLookup
    scratch: Path
    writer: BundleWriter


def _anew(job: _BuildRequest, found: BuildInputs | None) -> BuildResult:
    """Find out what the cache does not have, assemble the bundle, and keep what is new."""
    from packager.export.passes.worker import OnnxWorker

    with (
        process_memory.pause_garbage_collection(),
        OnnxWorker() as side,
        stage_bundle(job.out, job.name, force=job.how.force) as folder,
    ):
        if found is None:
            side.start()  # it imports while this process does
        try:
            from packager.builder import assemble
            from packager.builder.incremental import stage_cache
            from packager.parity.cases import sample_grid
        except ModuleNotFoundError as error:
            raise _extra_missing(error) from None
        before = _versions(job.project)
        grid = sample_grid.build_grid(job.project)
        recalled = stage_cache.CacheLookup()
        if found is not None and job.store is not None:
            recalled = stage_cache.load_stages(job.store, job.project, found.module_inputs, grid)
        writer = BundleWriter(folder / "bundle")
        if not _taken(recalled, writer):
            recalled = stage_cache.CacheLookup()
        staged = _StagedBundle(grid, recalled, folder, writer)
        results, used = _find_out(job, found, staged, side)
        with job.stages.stage(StageName.BUNDLE):
            content = assemble.BundleContents(job.project, grid, results, preflight.resolve_assets(job.project))
            assembled = assemble.assemble_bundle(content, staged.writer)
            source = _source(job, results, used, before)
            lock = lockfile.make_lockfile(source, assembled.config, staged.writer.digests, assembled.fingerprint)
            agrees = _hold_against_lock(job, lock)
            action = keys.make_bundle_key(job.project, source, preflight.resolve_assets(job.project), job.sha256)
        if job.how.check:
            with job.stages.stage(StageName.CHECK):
                _check(job, staged.writer.folder)
        kept = _kept(job, staged, results, source, assembled, lock, action)
        explanation = _keep(job, job.store, kept, recalled, used) if job.store is not None else ()
    _beside(job, job.out / job.name, lock)
    if agrees and job.store is not None:
        _remember(job, job.store, action, used)
    return _result(job, assembled.fingerprint, assembled.parity, assembled.summary, explanation, cached=False)


def _taken(recalled: CacheLookup, writer: BundleWriter) -> bool:
    """Take what is known into the staged bundle; no, where the cache was emptied meanwhile."""
    try:
        for path, held in recalled.files.items():
            writer.add_file(path, held)
    except FileNotFoundError:
        for path in list(writer.digests):
            writer.remove_file(path)
        return False
    return True


def _find_out(
    job: _BuildRequest, found: BuildInputs | None, staged: _StagedBundle, side: OnnxWorker
) -> tuple[StageResults, CodeDependencies]:
    """Say what is known, and let the pipeline find out the rest."""
    recalled = staged.recalled
    for stage in (StageName.REFERENCE, StageName.TORCHSCRIPT, StageName.ONNX):
        if stage in recalled.stages and (stage is StageName.REFERENCE or f"{stage} parity" in recalled.stages):
            job.stages.report_cached(stage)
    results = recalled.results.to_results()
    if results is not None and found is not None:
        return results, found.dependencies
    if recalled.results.onnx is None and found is not None:
        side.start()
    with job.stages.stage(StageName.IMPORT):
        try:
            from packager.builder import pipeline
            from packager.parity.diagnosis.diagnose import ReproTarget
        except ModuleNotFoundError as error:
            raise _extra_missing(error) from None
    repro = ReproTarget(job.out.parent / "repro" / job.name, str(job.shown.parent / "repro" / job.name))
    begun = pipeline.PipelineInputs(
        job.project, job.checkpoint, staged.grid, recalled.results, staged.scratch, staged.writer, repro
    )
    results, used = pipeline.run_stages(begun, worker=side, stages=job.stages)
    # What did not run now, as it was known, is still of the code.
    return results, used if found is None or recalled.results.reference is None else used.merge(found.dependencies)


def _check(job: _BuildRequest, bundle: Path) -> None:
    """Build elsewhere, and compare. Raises `BuildNotRepeatable`, or `RebuildFailed`."""
    from packager.builder import rebuild

    with rebuild.rebuild_elsewhere(job.manifest) as other:
        found = rebuild.compare_bundles(bundle, other)
    differing = [f"{path}: {difference}" for path, difference in found.items() if difference]
    if differing:
        raise BuildNotRepeatable(differing)


def _extra_missing(error: ModuleNotFoundError) -> Exception:
    if (error.name or "").partition(".")[0] == "packager":
        return error
    return ExtraMissing(error.name or str(error), "package build")


def _versions(project: Project) -> dict[str, FileVersion]:
    """The versions of the assets and the data, by what the manifest calls them. Raises OSError."""
    manifest = project.manifest
    data = [manifest.parity.data] if manifest.parity.data is not None else []
    return {name: FileVersion.of(project.folder / name) for name in (*manifest.assets, *data)}


def _source(
    job: _BuildRequest, results: StageResults, used: CodeDependencies, before: Mapping[str, FileVersion]
) -> dict[str, str]:
    """The inputs of the source, now that it is known what the code consists of. Raises `InputChanged`."""
    project = job.project
    if job.checkpoint.changed():
        raise InputChanged(project.checkpoint_display_name)
    try:
        now = _versions(project)
    except OSError:  # one of them is gone
        raise InputChanged("a file that the manifest names") from None
    for name in before:
        if not before[name].same_file(now[name]):
            raise InputChanged(name)
    if sha256_file(job.manifest) != project.sha256:
        job.stages.report_note(
            f"{project.path} changed while it was being built: the bundle is of what was read at first"
        )
    return keys.collect_module_inputs(project, results.reference.provenance.checkpoint_sha256, used, job.sha256)


# -- kept for the next build ----------------------------------------------------------------


def _kept(
    job: _BuildRequest,
    staged: _StagedBundle,
    results: StageResults,
    source: Mapping[str, str],
    assembled: SealedBundle,
    lock: Lockfile,
    bundle: CacheKey,
) -> list[CacheWrite]:
    """What there is to keep: the stages' outputs, and the bundle as a whole."""
    from packager.builder.incremental import stage_cache

    writer = staged.writer
    record = {
        "fingerprint": assembled.fingerprint,
        "parity": dict(assembled.parity),
        "facts": dict(assembled.summary),
        "lock": lock.model_dump(by_alias=True),
    }
    paths = {path: writer.folder / path for path in writer.digests}
    whole = stage_cache.CacheWrite(bundle, CacheEntry(record, dict(sorted(writer.digests.items()))), paths)
    return [*stage_cache.plan_writes(job.project, source, results, writer, staged.scratch, job.sha256), whole]


def _keep(
    job: _BuildRequest, store: Cache, kept: Sequence[CacheWrite], recalled: CacheLookup, used: CodeDependencies
) -> tuple[Explanation, ...]:
    """Put into the cache what can be put there; says why each stage was done. Raises `CacheDiffers`."""
    from packager.builder.incremental import stage_cache

    done = [one.action for one in kept]
    last = inputs.load_last_inputs(job.project, store)
    explanation = explain.explain(done, recalled.stages, last, cache_used=job.how.cache == "use")
    differing: list[str] = []
    try:
        differing = stage_cache.write_stages(store, kept)
        inputs.remember_inputs(job.project, store, used, done)
    except OSError as error:
        job.stages.report_note(f"the build could not be cached: {describe_write_error(error)}")
    if differing and job.how.cache == "verify":
        raise CacheDiffers(differing)
    return explanation


def _remember(job: _BuildRequest, store: Cache, bundle: CacheKey, used: CodeDependencies) -> None:
    """Let the next build see at once that nothing has changed; not where only a server can tell."""
    project = job.project
    wanted = project.manifest.checkpoint
    remote = urls.is_remote(wanted.path)
    if remote and wanted.sha256 is None:
        return
    checkpoint = {"checkpoint": project.checkpoint_path} if not remote else {}  # pinned: the manifest says which one
    files = {
        **used.locate_files(project.folder),
        **keys.files(project, preflight.resolve_assets(project)),
        "manifest": job.manifest,
        **checkpoint,
    }
    try:
        up_to_date.remember_build(store, job.manifest, job.name, bundle, files)
    except OSError as error:
        job.stages.report_note(f"the build could not be remembered: {describe_write_error(error)}")


# -- beside the bundle ----------------------------------------------------------------------


def _hold_against_lock(job: _BuildRequest, now: Lockfile) -> bool:
    """Say what differs from the lock, unless it is to be written; whether nothing does. Raises `LockDrifted`."""
    path = lockfile_path(job.manifest)
    if job.how.lock == "write":
        return True
    differences = lockfile.check_lockfile(path, now, required=job.how.lock == "require")
    for difference in differences:
        job.stages.report_note(f"differs from {path.name}: {difference}")
    return not differences


def _beside(job: _BuildRequest, folder: Path, lock: Lockfile) -> None:
    """Write what is asked for beside a bundle that is in its place: the lock, and the archive."""
    if job.how.lock == "write":
        lockfile.write_lockfile(lockfile_path(job.manifest), lock)
    if job.how.archive:
        from packager.bundle import archive

        with job.stages.stage(StageName.ARCHIVE), translate_os_errors(job.out):
            archive.write_archive(folder, job.out / f"{job.name}.zip")
