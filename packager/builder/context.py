"""What the steps of a build share: the eager module with its signature, and the place to work in."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore

import torch

from packager.bundle.writer import Writer
from packager.common.progress import Stages
from packager.export.passes.worker import OnnxSide
from packager.model.loader import Source
from packager.parity.cases.sample_grid import Grid
from packager.parity.cases.signature import TensorSpec
from packager.parity.diagnosis.diagnose import Place
from packager.parity.numerics.compare import Array
from packager.parity.numerics.verdict import Expectation


@dataclass(frozen=True)
class Eager:
    """The module, its cases, the signature that two forward passes gave, and what those gave by case.

    `early` is what every stage is compared with, before the other cases have run.
    """

    source: Source
    grid: Grid
    example: tuple[torch.Tensor, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    known: Mapping[str, Mapping[str, Array]]
    early: tuple[Expectation, ...] = ()


@dataclass(frozen=True)
class Site:
    """Where a bundle is built: scratch folder, the staged bundle's writer, who works, and who listens.

    `judging` is held while an artifact is judged: each wants memory for its weights, which two of large ones would take
    at once. `repro` is where what was found wrong is shown, outside of the folder for bundles.
    """

    scratch: Path
    writer: Writer
    side: OnnxSide
    background: ThreadPoolExecutor
    stages: Stages
    judging: Semaphore
    repro: Place
