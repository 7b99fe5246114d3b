"""`package build`: the front of the pipeline, which needs nothing heavy.

A bad manifest is answered before torch is imported, and the ONNX side starts importing its half of
the toolchain while this process imports torch and the user's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager import manifest, memory
from packager.bundle import layout
from packager.bundle.writer import check_target
from packager.errors import ExtraMissing
from packager.onnx_side import OnnxSide
from packager.preflight import preflight
from packager.progress import Listener, Stages, silent


@dataclass(frozen=True)
class BuildResult:
    """A bundle that was built and proven.

    `parity` is the verdict of each backend; `stages` are seconds of the wall clock by stage, in
    order; `facts` are what the closing table shows.
    """

    bundle: Path
    fingerprint: str
    parity: Mapping[str, str]
    stages: Mapping[str, float]
    facts: Mapping[str, str]

    def as_json(self) -> dict[str, object]:
        """The object that `package build --json` prints."""
        return {
            "bundle": str(self.bundle),
            "archive": None,
            "fingerprint": self.fingerprint,
            "cached": False,
            "stages": [
                {"name": name, "cached": False, "seconds": round(seconds, 3)} for name, seconds in self.stages.items()
            ],
            "parity": dict(self.parity),
        }


def build(
    path: str | Path, out: str | Path = "dist", *, force: bool = False, listener: Listener = silent
) -> BuildResult:
    """Build the bundle of a manifest into `out/NAME-VERSION`, replacing an earlier one in one step.

    `force` lets it replace something that is not a bundle; `listener` hears of the progress.
    Raises the errors of `packager.errors`: nothing is left behind then.
    """
    project = manifest.load(path)
    check_target(Path(out) / layout.folder_name(project.manifest.name, project.manifest.version), force=force)
    preflight(project)
    stages = Stages(listener)
    place = Path(out).absolute()  # whatever the user's code makes the working directory
    with memory.collector_paused(), OnnxSide() as side:
        with stages.stage("import"):
            try:
                from packager import pipeline
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] == "packager":
                    raise
                raise ExtraMissing(error.name or str(error), "package build") from None
        built = pipeline.run(project, place, side=side, stages=stages, force=force)
    return BuildResult(Path(out) / built.bundle.name, built.fingerprint, built.parity, stages.seconds, built.facts)
