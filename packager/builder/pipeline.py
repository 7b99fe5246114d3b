"""`package build` from top to bottom.

    request      the manifest, the target, the checkpoint's files and a required lockfile are checked before anything
                 heavy is imported
    cache        the bundle is restored as a whole, or the results of single stages are loaded
    source       the user's module with its weights, and the first forward passes
    noise        the error that the module's own arithmetic makes
    trace        TorchScript, which is the fallback and one of the starting points for ONNX
    export       ONNX, which the worker process simplifies and optimizes meanwhile
    reference    the module's outputs on every case
    torchscript  the fallback (TorchScript, else an exported program), read back from the staged bundle and checked
    onnx         the first exporter whose graph passes, read back and checked likewise
    bundle       evidence, config.json and README written, sealed, verified, compared with the lockfile
    keep         results go into the cache, and the bundle takes its place

Each stage is a function from frozen values to a frozen result. What the cache has is loaded before the stages run.
All concurrency is in `_make_artifacts`: the fallback is saved while ONNX is exported, the first graph is optimized and
loaded while the reference runs, and it is checked beside the fallback.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import wait
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from packager.builder import cached_bundle, finish, lockfile
from packager.builder.build_result import BuildResult
from packager.builder.context import BuildContext, BuildOptions, BuildRequest, EagerModel
from packager.builder.extras import build_extra
from packager.builder.incremental import explain, keys
from packager.builder.incremental.explain import Explanation
from packager.builder.incremental.inputs import (
    BuildInputs,
    check_unchanged,
    find_build_inputs,
    get_file_versions,
    load_last_inputs,
    remember_inputs,
)
from packager.builder.incremental.store import CacheEntry, CacheKey
from packager.bundle import layout
from packager.bundle.writer import BundleWriter, check_archive_target, check_bundle_target, stage_bundle
from packager.checkpoint.locate import FileVersion
from packager.common import process_memory
from packager.common.cache import Cache, describe_write_error
from packager.common.hashing import sha256_file
from packager.common.progress import StageName, StageReporter
from packager.errors import BuildNotRepeatable, CacheDiffers, InputChanged
from packager.model.code_dependencies import CodeDependencies
from packager.project import preflight
from packager.project.manifest import Project, load_manifest

if TYPE_CHECKING:
    from packager.builder.assemble import SealedBundle
    from packager.builder.background import Background
    from packager.builder.incremental.stage_cache import CacheWrite
    from packager.builder.results import CachedResults, FallbackResult, OnnxResult, StageResults
    from packager.parity.cases.sample_grid import Grid
    from packager.parity.reference import NoiseMeasurement
    from packager.parity.results import Reference

_CONCURRENT_WEIGHT_BYTES = 50 << 20
_CONCURRENT_TRANSIENT_BYTES = 1 << 28
_CONTROL_FLOW_HINT = "no test case may show the other way; torchscript.method: script follows the data where it can"


# -- the request ----------------------------------------------------------------------------


def build(path: Path, output: Path, options: BuildOptions, cache: Cache | None, reporter: StageReporter) -> BuildResult:
    """Build the bundle of a manifest into `output`, and cache what is new. Raises the errors of `packager.errors`."""
    project = load_manifest(path)
    name = layout.folder_name(project.manifest.name, project.manifest.version)
    _check_targets(project, output, name, options)
    with preflight.fetch_checkpoint(project, reporter) as project:
        checkpoint = preflight.check_project_files(project)
        request = BuildRequest(project, checkpoint, output.absolute(), output, name, options, cache, reporter)
        finish.check_locked_inputs(request)
        inputs = _find_inputs(request)
        result = cached_bundle.restore_cached_bundle(request, inputs) or _build_bundle(request, inputs)
    if cache is not None:
        cache.trim()
    return result


def _check_targets(project: Project, output: Path, name: str, options: BuildOptions) -> None:
    """Refuse what would stop the build at its end: a target to keep, a missing asset, an unreadable lockfile."""
    check_bundle_target(output / name, force=options.force)
    if options.archive:
        check_archive_target(output / f"{name}.zip", force=options.force)
    preflight.resolve_assets(project)
    if options.lock != "write":
        lockfile.check_lockfile_present(project.folder / project.path.name, required=options.lock == "require")


def _find_inputs(request: BuildRequest) -> BuildInputs | None:
    """Return the inputs under which the cache is asked; None if it is not asked, or the code has never run."""
    if request.cache is None or request.options.cache != "use" or request.options.check:
        return None
    return find_build_inputs(request.project, request.checkpoint, request.cache)


# -- from the request to the bundle ---------------------------------------------------------


def _build_bundle(request: BuildRequest, inputs: BuildInputs | None) -> BuildResult:
    """Run the stages that the cache lacks, assemble and seal the bundle, and cache what is new."""
    from packager.export.passes.worker import OnnxWorker

    project, reporter = request.project, request.reporter
    with (
        process_memory.pause_garbage_collection(),
        OnnxWorker() as worker,
        stage_bundle(request.output, request.name, force=request.options.force) as scratch,
    ):
        if inputs is None:
            worker.start()  # it imports onnx while this process imports torch
        with build_extra("package build"):
            from packager.builder.assemble import BundleContents, assemble_bundle
            from packager.parity.cases.sample_grid import build_grid
        context = BuildContext(request, scratch, BundleWriter(scratch / "bundle"), worker)
        versions = get_file_versions(project)
        grid = build_grid(project)
        cached = _load_cached_results(context, inputs, grid)
        results, dependencies = _complete_results(context, inputs, grid, cached)
        with reporter.stage(StageName.BUNDLE):
            assets = preflight.resolve_assets(project)
            sealed = assemble_bundle(BundleContents(project, grid, results, assets), context.writer)
            module_inputs = _collect_final_inputs(request, results, dependencies, versions)
            lock = lockfile.make_lockfile(module_inputs, sealed.config, context.writer.digests, sealed.fingerprint)
            agrees = finish.check_lockfile(request, lock)
            bundle_key = keys.make_bundle_key(project, module_inputs, assets, request.sha256)
        if request.options.check:
            with reporter.stage(StageName.CHECK):
                _check_rebuild(request, context.writer.folder)
        writes = _plan_cache_writes(context, module_inputs, results, sealed, bundle_key)
        explanation = _write_to_cache(request, writes, cached, dependencies)
    finish.write_lockfile_and_archive(request, lock)
    if agrees:
        finish.remember_build(request, bundle_key, dependencies)
    return finish.make_result(request, sealed.fingerprint, sealed.parity, sealed.summary, explanation, cached=False)


def _load_cached_results(context: BuildContext, inputs: BuildInputs | None, grid: Grid) -> CachedResults:
    """Load the stage results that the cache has, and put their files into the staged bundle."""
    from packager.builder.incremental import stage_cache
    from packager.builder.results import CachedResults

    if inputs is None or context.request.cache is None:
        return CachedResults()
    cached = stage_cache.load_results(context.request.cache, context.project, inputs.module_inputs, grid)
    try:
        for path, file in cached.files.items():
            context.writer.add_file(path, file)
    except FileNotFoundError:  # the cache has been emptied meanwhile
        for path in list(context.writer.digests):
            context.writer.remove_file(path)
        return CachedResults()
    return cached


def _complete_results(
    context: BuildContext, inputs: BuildInputs | None, grid: Grid, cached: CachedResults
) -> tuple[StageResults, CodeDependencies]:
    """Return the results of all stages and the dependencies of the user's code, running only what the cache lacks."""
    for stage in (StageName.REFERENCE, StageName.TORCHSCRIPT, StageName.ONNX):
        if cached.is_complete(stage.value):
            context.reporter.report_cached(stage)
    results = cached.to_results()
    if results is not None and inputs is not None:
        return results, inputs.dependencies
    if cached.onnx is None and inputs is not None:  # else it has been started already
        context.worker.start()
    results, dependencies = _run_stages(context, grid, cached)
    if inputs is not None and cached.reference is not None:
        dependencies = dependencies.merge(inputs.dependencies)  # of cases that did not run this time
    return results, dependencies


# -- the stages -----------------------------------------------------------------------------


def _run_stages(context: BuildContext, grid: Grid, cached: CachedResults) -> tuple[StageResults, CodeDependencies]:
    """Load the user's module, and run the stages that the cache lacks. Raises `InputChanged` if its code changed."""
    stage = context.reporter.stage
    with stage(StageName.IMPORT), build_extra("package build"):
        from packager.builder.background import Background
        from packager.builder.results import StageResults
        from packager.builder.stages import load_stage, reference_stage
        from packager.export.exporters import silence_exporters

    load_stage.check_providers(context)
    with load_stage.open_project(context) as opened:
        with stage(StageName.SOURCE):
            model = load_stage.load_model(context, opened.load, grid, cached.reference)
        noise = None
        if cached.reference is None:
            with stage(StageName.NOISE):
                noise = reference_stage.measure_noise(context, model)
        with silence_exporters(), Background(context.worker) as background:
            model, reference, torchscript, onnx = _make_artifacts(context, model, noise, cached, background)
        for line in onnx.specialized.merge(torchscript.specialized).user_lines:
            note = f"{line}: data-dependent control flow was fixed at trace time; {_CONTROL_FLOW_HINT}"
            context.reporter.report_note(note)
        dependencies, changed = opened.dependencies.collect(), opened.dependencies.list_changed()
        if changed:
            raise InputChanged(changed[0])
        result = cached.reference or reference_stage.make_result(context, model, reference, dependencies)
        return StageResults(result, onnx, torchscript), dependencies


def _make_artifacts(
    context: BuildContext,
    model: EagerModel,
    noise: NoiseMeasurement | None,
    cached: CachedResults,
    background: Background,
) -> tuple[EagerModel, Reference, FallbackResult, OnnxResult]:
    """Trace, export, measure the reference, and check both artifacts; the model returned has its final signature."""
    from packager.builder.stages import onnx_export, onnx_stage, reference_stage, torchscript_stage

    stage, saved, prepared, checked = context.reporter.stage, None, None, None
    with nullcontext() if cached.has_artifacts else stage(StageName.TRACE):
        traced = torchscript_stage.trace(context, model, noise, cached)
    if cached.torchscript is None:
        saved = background.submit(torchscript_stage.save, context, traced.program, fold=True)
    if cached.onnx is None:
        with stage(StageName.EXPORT):
            exporters = onnx_export.list_exporters(context.project, traced.program)
            if exporters:
                candidate = onnx_export.export(context, model, traced, exporters[0])
                prepared = background.submit(onnx_stage.prepare, context, candidate)
            process_memory.release_memory()
    if cached.reference is not None:
        reference = cached.reference.reference
    else:
        with stage(StageName.REFERENCE):
            reference = reference_stage.measure_reference(context, model, noise, traced, cached)
            outputs = reference_stage.infer_outputs(reference)
            if outputs != model.outputs:  # the first passes were not enough to tell, so the graph has wrong dims
                model = replace(model, outputs=outputs)
                onnx_stage.discard_prepared(context, prepared)
                prepared, traced = None, torchscript_stage.retrace(context, model, traced)
    if prepared is not None:
        checked = background.submit_after(prepared, partial(onnx_stage.check_prepared, context, reference))
        prepared = None  # with its session, once the check is done
        if _take_much_memory(model.weight_bytes, process_memory.get_transient_bytes()):
            with stage(StageName.ONNX):
                wait([checked])  # two large artifacts at once would take twice the memory
            process_memory.release_memory()
    torchscript, onnx = cached.torchscript, cached.onnx
    if torchscript is None or not torchscript.is_checked:
        with stage(StageName.TORCHSCRIPT):
            form = None if saved is None else saved.result()
            torchscript = torchscript_stage.ship(context, model, traced, form, reference, torchscript)
    if onnx is None or not onnx.is_checked:
        with stage(StageName.ONNX):
            first = None if checked is None else checked.result()
            onnx = onnx_stage.ship(context, model, traced, first, reference, onnx, torchscript)
    return model, reference, torchscript, onnx


def _take_much_memory(weight_bytes: int, transient_bytes: int) -> bool:
    """Return whether artifacts should be checked one after the other.

    `transient_bytes` is what the module needs while it runs. CvT (78 MB of weights) takes 1,434 MB with both artifacts
    at once and 1,275 MB with one at a time.
    """
    return weight_bytes > _CONCURRENT_WEIGHT_BYTES or transient_bytes > _CONCURRENT_TRANSIENT_BYTES


# -- what follows the stages ----------------------------------------------------------------


def _collect_final_inputs(
    request: BuildRequest,
    results: StageResults,
    dependencies: CodeDependencies,
    versions: Mapping[str, FileVersion],
) -> dict[str, str]:
    """Return the inputs of the module, now that its code's files are known. Raises `InputChanged`."""
    project = request.project
    check_unchanged(project, request.checkpoint, versions)
    if sha256_file(request.manifest_path) != project.sha256:
        note = f"{project.path} changed during the build; the bundle is made from what was read first"
        request.reporter.report_note(note)
    checkpoint_sha256 = results.reference.provenance.checkpoint_sha256
    return keys.collect_module_inputs(project, checkpoint_sha256, dependencies, request.sha256)


def _check_rebuild(request: BuildRequest, bundle: Path) -> None:
    """Build again elsewhere, and compare the bytes. Raises `BuildNotRepeatable` or `RebuildFailed`."""
    from packager.builder import rebuild

    with rebuild.rebuild_elsewhere(request.manifest_path) as other:
        differences = rebuild.compare_bundles(bundle, other)
    differing = [f"{path}: {difference}" for path, difference in differences.items() if difference]
    if differing:
        raise BuildNotRepeatable(differing)


def _plan_cache_writes(
    context: BuildContext,
    module_inputs: Mapping[str, str],
    results: StageResults,
    sealed: SealedBundle,
    bundle_key: CacheKey,
) -> list[CacheWrite]:
    """Return the cache entries of this build: each stage's results, and the bundle as a whole."""
    from packager.builder.incremental import stage_cache

    writer = context.writer
    entry = CacheEntry({"summary": dict(sealed.summary)}, dict(sorted(writer.digests.items())))
    files = {path: writer.folder / path for path in writer.digests}
    bundle = stage_cache.CacheWrite(bundle_key, entry, files, writer.sha256)
    stages = stage_cache.plan_writes(
        context.project, module_inputs, results, writer, context.scratch, context.request.sha256
    )
    return [*stages, bundle]


def _write_to_cache(
    request: BuildRequest, writes: list[CacheWrite], cached: CachedResults, dependencies: CodeDependencies
) -> tuple[Explanation, ...]:
    """Write what is new to the cache, and explain why each stage ran. Raises `CacheDiffers` with `--verify-cache`."""
    from packager.builder.incremental import stage_cache

    cache, project, mode = request.cache, request.project, request.options.cache
    if cache is None:
        return ()
    cache_keys = [write.key for write in writes]
    last_inputs = load_last_inputs(project, cache)
    explanation = explain.explain(cache_keys, cached.stages, last_inputs, cache_used=mode == "use")
    differing: list[str] = []
    try:
        differing = stage_cache.write_entries(cache, writes)
        remember_inputs(project, cache, dependencies, cache_keys)
    except OSError as error:
        request.reporter.report_note(f"could not cache this build: {describe_write_error(error)}")
    if differing and mode == "verify":
        raise CacheDiffers(differing)
    return explanation
