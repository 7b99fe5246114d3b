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
from packager.builder.api import BuildResult, CacheUse, LockUse
from packager.builder.incremental import explain, inputs, keys, up_to_date
from packager.builder.incremental.explain import Explanation
from packager.builder.incremental.inputs import Identity
from packager.builder.incremental.up_to_date import lock_of
from packager.builder.lockfile import Lock
from packager.bundle import layout, restore
from packager.bundle.writer import Writer, check_archive, check_target, staging, users_problem
from packager.checkpoint.locate import FileVersion, LocatedCheckpoint
from packager.checkpoint.remote import urls
from packager.common import process_memory
from packager.common.cache_store import Action, Cache, Entry, no_room
from packager.common.hashing import sha256_file
from packager.common.progress import Stages
from packager.errors import BuildNotRepeatable, CacheDiffers, ExtraMissing, InputChanged
from packager.project import manifest, preflight
from packager.project.manifest import Project

if TYPE_CHECKING:
    from packager.builder.assemble import Assembled
    from packager.builder.incremental.stage_cache import Kept, Recalled
    from packager.builder.results import Results
    from packager.export.passes.worker import OnnxSide
    from packager.model.code_dependencies import Footprint
    from packager.parity.cases.sample_grid import Grid


@dataclass(frozen=True)
class How:
    """How a build is done, which changes nothing of what it makes: see `packager.builder.api.build`."""

    force: bool
    archive: bool
    cache: CacheUse
    lock: LockUse
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
    how: How
    store: Cache | None
    stages: Stages

    @property
    def manifest(self) -> Path:
        """The manifest's absolute path."""
        return self.project.folder / self.project.path.name

    def sha256(self, path: Path) -> str:
        """The digest of a file, from the cache's memory where there is one."""
        return sha256_file(path) if self.store is None else self.store.sha256(path)


def build(path: Path, out: Path, how: How, store: Cache | None, stages: Stages) -> BuildResult:
    """Build, and keep what is new in `store`. Raises the errors of `packager.errors`."""
    project = manifest.load(path)
    name = layout.folder_name(project.manifest.name, project.manifest.version)
    check_target(out / name, force=how.force)
    if how.archive:
        check_archive(out / f"{name}.zip", force=how.force)
    preflight.assets(project)
    if how.lock != "write":
        lockfile.check_there(project.folder / project.path.name, required=how.lock == "require")
    with preflight.at_hand(project, stages) as project:
        checkpoint = preflight.preflight(project)
        result = _build(_BuildRequest(project, checkpoint, out.absolute(), out, name, how, store, stages))
    if store is not None:
        store.trim()
    return result


def _build(job: _BuildRequest) -> BuildResult:
    """From the cache as a whole, or as far as it has it not."""
    store = job.store
    asked = job.how.cache == "use" and not job.how.check
    found = inputs.known(job.project, job.checkpoint, store) if store is not None and asked else None
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
        recalled=frozenset(job.stages.recalled),
        facts=facts,
        explanation=explanation,
    )


# -- the whole bundle from the cache --------------------------------------------------------


def _from_cache(job: _BuildRequest, store: Cache, found: Identity) -> BuildResult | None:
    """The bundle as an earlier build made it; None where the cache has it no more."""
    action = keys.bundle(job.project, found.source, preflight.assets(job.project), store.sha256)
    entry = store.find(action, files=False)
    if entry is None:
        return None
    record, target = entry.record, job.out / job.name
    lock = Lock.model_validate(record["lock"])
    agrees = _hold_against_lock(job, lock)
    if not restore.is_there(target, entry.files, store.sha256):
        if store.find(action) is None:
            return None
        try:
            with job.stages.stage("restore"), staging(job.out, job.name, force=job.how.force) as folder:
                restore.write(Writer(folder / "bundle"), entry.files, store.object)
        except restore.SourceDamaged:
            return None
    job.stages.recall("bundle")
    _beside(job, target, lock)
    explanation = (Explanation("bundle", True, ()),)
    if agrees:
        _remember(job, store, action, found.used)
    return _result(job, str(record["fingerprint"]), record["parity"], record["facts"], explanation, cached=True)


# -- built, as far as it is not known -------------------------------------------------------


@dataclass(frozen=True)
class _StagedBundle:
    """A bundle on its way: its cases, what the cache knew, the scratch folder, and the writer that fills it."""

    grid: Grid
    recalled: Recalled
    scratch: Path
    writer: Writer


def _anew(job: _BuildRequest, found: Identity | None) -> BuildResult:
    """Find out what the cache does not have, assemble the bundle, and keep what is new."""
    from packager.export.passes.worker import OnnxSide

    with (
        process_memory.collector_paused(),
        OnnxSide() as side,
        staging(job.out, job.name, force=job.how.force) as folder,
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
        grid = sample_grid.grid(job.project)
        recalled = stage_cache.Recalled()
        if found is not None and job.store is not None:
            recalled = stage_cache.recall(job.store, job.project, found.source, grid)
        writer = Writer(folder / "bundle")
        if not _taken(recalled, writer):
            recalled = stage_cache.Recalled()
        staged = _StagedBundle(grid, recalled, folder, writer)
        results, used = _find_out(job, found, staged, side)
        with job.stages.stage("bundle"):
            content = assemble.Content(job.project, grid, results, preflight.assets(job.project))
            assembled = assemble.write(content, staged.writer)
            source = _source(job, results, used, before)
            lock = lockfile.of(source, assembled.config, staged.writer.digests, assembled.fingerprint)
            agrees = _hold_against_lock(job, lock)
            action = keys.bundle(job.project, source, preflight.assets(job.project), job.sha256)
        if job.how.check:
            with job.stages.stage("check"):
                _check(job, staged.writer.folder)
        kept = _kept(job, staged, results, source, assembled, lock, action)
        explanation = _keep(job, job.store, kept, recalled, used) if job.store is not None else ()
    _beside(job, job.out / job.name, lock)
    if agrees and job.store is not None:
        _remember(job, job.store, action, used)
    return _result(job, assembled.fingerprint, assembled.parity, assembled.facts, explanation, cached=False)


def _taken(recalled: Recalled, writer: Writer) -> bool:
    """Take what is known into the staged bundle; no, where the cache was emptied meanwhile."""
    try:
        for path, held in recalled.files.items():
            writer.add_file(path, held)
    except FileNotFoundError:
        for path in list(writer.digests):
            writer.discard(path)
        return False
    return True


def _find_out(job: _BuildRequest, found: Identity | None, staged: _StagedBundle, side: OnnxSide) -> tuple[Results, Footprint]:
    """Say what is known, and let the pipeline find out the rest."""
    recalled = staged.recalled
    for stage in ("reference", "torchscript", "onnx"):
        if stage in recalled.found and (stage == "reference" or f"{stage} parity" in recalled.found):
            job.stages.recall(stage)
    results = recalled.known.results()
    if results is not None and found is not None:
        return results, found.used
    if recalled.known.onnx is None and found is not None:
        side.start()
    with job.stages.stage("import"):
        try:
            from packager.builder import pipeline
            from packager.parity.diagnosis.diagnose import Place
        except ModuleNotFoundError as error:
            raise _extra_missing(error) from None
    repro = Place(job.out.parent / "repro" / job.name, str(job.shown.parent / "repro" / job.name))
    begun = pipeline.Begun(
        job.project, job.checkpoint, staged.grid, recalled.known, staged.scratch, staged.writer, repro
    )
    results, used = pipeline.run(begun, side=side, stages=job.stages)
    # What did not run now, as it was known, is still of the code.
    return results, used if found is None or recalled.known.measured is None else used.joined(found.used)


def _check(job: _BuildRequest, bundle: Path) -> None:
    """Build elsewhere, and compare. Raises `BuildNotRepeatable`, or `RebuildFailed`."""
    from packager.builder import rebuild

    with rebuild.elsewhere(job.manifest) as other:
        found = rebuild.compared(bundle, other)
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


def _source(job: _BuildRequest, results: Results, used: Footprint, before: Mapping[str, FileVersion]) -> dict[str, str]:
    """The inputs of the source, now that it is known what the code consists of. Raises `InputChanged`."""
    project = job.project
    if job.checkpoint.changed():
        raise InputChanged(project.checkpoint_shown)
    try:
        now = _versions(project)
    except OSError:  # one of them is gone
        raise InputChanged("a file that the manifest names") from None
    for name in before:
        if not before[name].same_file(now[name]):
            raise InputChanged(name)
    if sha256_file(job.manifest) != project.sha256:
        job.stages.tell(f"{project.path} changed while it was being built: the bundle is of what was read at first")
    return keys.source(project, results.measured.origin.checkpoint_sha256, used, job.sha256)


# -- kept for the next build ----------------------------------------------------------------


def _kept(
    job: _BuildRequest,
    staged: _StagedBundle,
    results: Results,
    source: Mapping[str, str],
    assembled: Assembled,
    lock: Lock,
    bundle: Action,
) -> list[Kept]:
    """What there is to keep: the stages' outputs, and the bundle as a whole."""
    from packager.builder.incremental import stage_cache

    writer = staged.writer
    record = {
        "fingerprint": assembled.fingerprint,
        "parity": dict(assembled.parity),
        "facts": dict(assembled.facts),
        "lock": lock.model_dump(by_alias=True),
    }
    paths = {path: writer.folder / path for path in writer.digests}
    whole = stage_cache.Kept(bundle, Entry(record, dict(sorted(writer.digests.items()))), paths)
    return [*stage_cache.plan(job.project, source, results, writer, staged.scratch, job.sha256), whole]


def _keep(
    job: _BuildRequest, store: Cache, kept: Sequence[Kept], recalled: Recalled, used: Footprint
) -> tuple[Explanation, ...]:
    """Put into the cache what can be put there; says why each stage was done. Raises `CacheDiffers`."""
    from packager.builder.incremental import stage_cache

    done = [one.action for one in kept]
    last = inputs.last(job.project, store)
    explanation = explain.explain(done, recalled.found, last, asked=job.how.cache == "use")
    differing: list[str] = []
    try:
        differing = stage_cache.keep(store, kept)
        inputs.remember(job.project, store, used, done)
    except OSError as error:
        job.stages.tell(f"the build could not be cached: {no_room(error)}")
    if differing and job.how.cache == "verify":
        raise CacheDiffers(differing)
    return explanation


def _remember(job: _BuildRequest, store: Cache, bundle: Action, used: Footprint) -> None:
    """Let the next build see at once that nothing has changed; not where only a server can tell."""
    project = job.project
    wanted = project.manifest.checkpoint
    remote = urls.is_remote(wanted.path)
    if remote and wanted.sha256 is None:
        return
    checkpoint = {"checkpoint": project.checkpoint} if not remote else {}  # pinned: the manifest says which one
    files = {
        **used.files(project.folder),
        **keys.files(project, preflight.assets(project)),
        "manifest": job.manifest,
        **checkpoint,
    }
    try:
        up_to_date.remember(store, job.manifest, job.name, bundle, files)
    except OSError as error:
        job.stages.tell(f"the build could not be remembered: {no_room(error)}")


# -- beside the bundle ----------------------------------------------------------------------


def _hold_against_lock(job: _BuildRequest, now: Lock) -> bool:
    """Say what differs from the lock, unless it is to be written; whether nothing does. Raises `LockDrifted`."""
    path = lock_of(job.manifest)
    if job.how.lock == "write":
        return True
    differences = lockfile.check(path, now, required=job.how.lock == "require")
    for difference in differences:
        job.stages.tell(f"differs from {path.name}: {difference}")
    return not differences


def _beside(job: _BuildRequest, folder: Path, lock: Lock) -> None:
    """Write what is asked for beside a bundle that is in its place: the lock, and the archive."""
    if job.how.lock == "write":
        lockfile.write(lock_of(job.manifest), lock)
    if job.how.archive:
        from packager.bundle import archive

        with job.stages.stage("archive"), users_problem(job.out):
            archive.write(folder, job.out / f"{job.name}.zip")
