"""The end of a build, whether its bundle was built or restored: lockfile, archive, and what the next build may skip."""

from __future__ import annotations

from collections.abc import Mapping

from packager.builder import lockfile
from packager.builder.build_result import BuildResult
from packager.builder.context import BuildRequest
from packager.builder.incremental import keys, up_to_date
from packager.builder.incremental.explain import Explanation
from packager.builder.incremental.store import CacheKey
from packager.builder.lockfile import Lockfile
from packager.bundle.writer import translate_os_errors
from packager.checkpoint.locate import digest_checkpoint
from packager.checkpoint.remote import urls
from packager.common.cache import describe_write_error
from packager.common.progress import StageName
from packager.model.code_dependencies import CodeDependencies
from packager.project import preflight


def check_locked_inputs(request: BuildRequest) -> None:
    """With `--locked`, compare what is known before anything heavy is imported. Raises `LockDrifted`."""
    if request.options.lock == "require":
        checkpoint_sha256 = digest_checkpoint(request.checkpoint, request.sha256)
        lockfile.check_inputs(request.manifest_path, request.project, checkpoint_sha256, request.sha256)


def check_lockfile(request: BuildRequest, lock: Lockfile) -> bool:
    """Report every difference from the lockfile, and return whether there is none. Raises `LockDrifted`.

    With `--lock` the lockfile is about to be written, so nothing is compared.
    """
    path = up_to_date.lockfile_path(request.manifest_path)
    if request.options.lock == "write":
        return True
    differences = lockfile.check_lockfile(path, lock, required=request.options.lock == "require")
    for difference in differences:
        request.reporter.report_note(f"differs from {path.name}: {difference}")
    return not differences


def write_lockfile_and_archive(request: BuildRequest, lock: Lockfile) -> None:
    """Write the lockfile and the archive of a bundle that is in its place, if the options ask for them."""
    if request.options.lock == "write":
        lockfile.write_lockfile(up_to_date.lockfile_path(request.manifest_path), lock)
        path = up_to_date.lockfile_path(request.project.path)
        request.reporter.report_note(f"wrote {path}, which pins {lockfile.describe_pins(lock)}")
    if request.options.archive:
        from packager.bundle import archive

        with request.reporter.stage(StageName.ARCHIVE), translate_os_errors(request.output):
            archive.write_archive(request.target, request.output / f"{request.name}.zip")


def remember_build(request: BuildRequest, bundle_key: CacheKey, dependencies: CodeDependencies) -> None:
    """Let the next build of this manifest see at once that nothing has changed.

    Nothing is remembered for a remote checkpoint without a pin: only its server can tell whether it changed.
    """
    project = request.project
    remote = urls.is_remote(project.manifest.checkpoint.path)
    if request.cache is None or (remote and project.manifest.checkpoint.sha256 is None):
        return
    files = {
        **dependencies.locate_files(project.folder),
        **keys.list_bundle_files(project, preflight.resolve_assets(project)),
        "manifest": request.manifest_path,
        **({} if remote else {"checkpoint": project.checkpoint_path}),
    }
    try:
        up_to_date.remember_build(request.cache, request.manifest_path, request.name, bundle_key, files)
    except OSError as error:
        request.reporter.report_note(f"could not remember this build: {describe_write_error(error)}")


def make_result(
    request: BuildRequest,
    fingerprint: str,
    parity: Mapping[str, str],
    summary: Mapping[str, str],
    explanation: tuple[Explanation, ...],
    *,
    cached: bool,
) -> BuildResult:
    """Return the result of a build, with paths as the caller gave them."""
    output, options = request.displayed_output, request.options
    return BuildResult(
        bundle=output / request.name,
        archive=output / f"{request.name}.zip" if options.archive else None,
        fingerprint=fingerprint,
        cached=cached,
        parity=parity,
        stages=request.reporter.seconds,
        recalled=frozenset(request.reporter.cached),
        facts=summary,
        notes=tuple(request.reporter.notes),
        explanation=explanation,
    )
