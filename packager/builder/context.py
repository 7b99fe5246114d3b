"""What the steps of a build share: the eager module with its signature, and the place to work in."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore

import torch

from packager.bundle.writer import BundleWriter
from packager.common.progress import StageReporter
from packager.export.passes.worker import OnnxWorker
from packager.model.loader import LoadedModel
from packager.parity.cases.sample_grid import Grid
from packager.parity.cases.signature import TensorSpec
from packager.parity.diagnosis.diagnose import ReproTarget
from packager.parity.numerics.compare import Array
from packager.parity.numerics.verdict import ReferenceCase


@dataclass(frozen=True)
class EagerModel:
    """The module, its cases, the signature that two forward passes gave, and what those gave by case.

    `early` is what every stage is compared with, before the other cases have run.
    """

    loaded: LoadedModel
    grid: Grid
    example: tuple[torch.Tensor, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    known_outputs: Mapping[str, Mapping[str, Array]]
    probe: tuple[ReferenceCase, ...] = ()


@dataclass(frozen=True)
class BuildContext:
    """Where a bundle is built: scratch folder, the staged bundle's writer, who works, and who listens.

    `judging` is held while an artifact is judged: each wants memory for its weights, which two of large ones would take
    at once. `repro` is where what was found wrong is shown, outside of the folder for bundles.
    """

    scratch: Path
    writer: BundleWriter
    worker: OnnxWorker
    executor: ThreadPoolExecutor
    stages: StageReporter
    parity_semaphore: Semaphore
    repro_target: ReproTarget
