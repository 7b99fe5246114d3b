"""The carriers of a build: how to build, what to build and where, and the eager module that everything starts from.

All are frozen. A stage takes the context, the model and the results of earlier stages, and returns its own result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packager.common.hashing import sha256_file

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from packager.bundle.writer import BundleWriter
    from packager.checkpoint.locate import LocatedCheckpoint
    from packager.common.cache import Cache
    from packager.common.progress import StageReporter
    from packager.export.exporters import ExporterFailed
    from packager.export.passes.worker import OnnxWorker
    from packager.model.loader import LoadedModel
    from packager.parity.cases.sample_grid import Grid
    from packager.parity.cases.signature import TensorSpec
    from packager.parity.cost import ForwardCost
    from packager.parity.numerics.compare import Array
    from packager.parity.numerics.verdict import CaseNoise
    from packager.project.manifest import Project

CacheMode = Literal["use", "verify", "off"]
LockMode = Literal["check", "write", "require"]


@dataclass(frozen=True)
class BuildOptions:
    """How to build. None of this changes the bytes of the bundle: see `packager.builder.api.build`."""

    force: bool
    archive: bool
    cache: CacheMode
    lock: LockMode
    check: bool
    diagnose: bool


@dataclass(frozen=True)
class BuildRequest:
    """One build: the project with its located checkpoint, where the bundle goes, the cache, and who listens.

    `output` is absolute, so the user's code may change the working directory; `displayed_output` is as given.
    """

    project: Project
    checkpoint: LocatedCheckpoint
    output: Path
    displayed_output: Path
    name: str
    options: BuildOptions
    cache: Cache | None
    reporter: StageReporter

    @property
    def manifest_path(self) -> Path:
        """The absolute path of the manifest."""
        return self.project.folder / self.project.path.name

    @property
    def target(self) -> Path:
        """The absolute folder of the finished bundle."""
        return self.output / self.name

    def sha256(self, path: Path) -> str:
        """Return the SHA-256 of a file in hex, from the cache's memory of digests if there is a cache."""
        return sha256_file(path) if self.cache is None else self.cache.file_digest(path)


@dataclass(frozen=True)
class BuildContext:
    """A build in progress: its request, a scratch folder, the writer of the staged bundle, and the ONNX worker.

    `remeasured` keeps the noise of the test cases that were evaluated in every way, by name: both artifacts need it.
    `exported_programs` keeps the program of torch.export, or why there is none, for the same reason.
    """

    request: BuildRequest
    scratch: Path
    writer: BundleWriter
    worker: OnnxWorker
    remeasured: dict[str, CaseNoise] = field(default_factory=dict)
    exported_programs: list[ExportedProgram | ExporterFailed] = field(default_factory=list)

    @property
    def project(self) -> Project:
        """The project that is built."""
        return self.request.project

    @property
    def reporter(self) -> StageReporter:
        """The reporter of stages and notes."""
        return self.request.reporter


@dataclass(frozen=True)
class EagerModel:
    """The user's module, ready to be compared with: test cases, signature, and outputs computed so far.

    `example` are the tensors of the grid's example case, in the order of forward()'s parameters. `inputs` and `outputs`
    are the signature; the outputs' shapes are what a few forward passes show. `known_outputs` are those passes' outputs
    as numpy arrays, by case and output name. `weight_bytes` counts parameters and buffers. `cost` is that of a forward
    pass; None if the reference is cached.
    """

    loaded: LoadedModel
    grid: Grid
    example: tuple[torch.Tensor, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    known_outputs: Mapping[str, Mapping[str, Array]]
    weight_bytes: int
    cost: ForwardCost | None = None
