"""Repeat how other tools decide that an exported model is right: the samples that they try, and how they compare.

Every rule repeats what a tool does if verification is switched on, according to the source that it names. The expected
outputs are those of the eager module, although some of the tools do not compare with it. All refuse a model that does
not run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import GraphOptimizationLevel as Level
from torch.onnx.verification import VerificationInfo

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "mutants")]

from architectures import EXAMPLE, Architecture  # noqa: E402 (the path comes first)

from packager.project.manifest import InputSpec  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Rule:
    """The rule of one tool: the optimization level of its runs, its samples, and which outputs it refuses."""

    name: str
    source: str
    level: Level
    feeds: Callable[[Architecture], Sequence[dict[str, Array]]]
    refuses: Callable[[Arrays, Arrays], bool]


# -- samples --------------------------------------------------------------------------------


def _feed(
    architecture: Architecture, make: Callable[[InputSpec, list[int]], Array], sizes: Sequence[int] = EXAMPLE
) -> dict[str, Array]:
    """Return an array for every input, by name; `sizes` are those of the dims, clamped to the manifest's limits."""
    by_name = architecture.sizes(sizes)
    return {
        name: np.asarray(
            make(InputSpec.model_validate(spec), [by_name.get(dim, dim) for dim in spec["shape"]]), spec["dtype"]
        )
        for name, spec in architecture.inputs.items()
    }


def _random(seed: int, *, unit: bool) -> Callable[[InputSpec, list[int]], Array]:
    """Return a function that draws an input: random ids and flags, and floats in [0, 1) or in the manifest's range."""
    generator = np.random.default_rng(seed)

    def make(spec: InputSpec, shape: list[int]) -> Array:
        if spec.dtype == "bool":
            return generator.integers(0, 2, shape).astype(bool)
        low, high = spec.value_bounds() if spec.range is not None else (None, None)
        if low is not None and np.dtype(spec.dtype).kind in "iu":
            return generator.integers(low, high, shape, endpoint=True)
        if unit:
            return generator.random(shape)
        return generator.standard_normal(shape) if low is None else generator.uniform(low, high, shape)

    return make


def _as_given(architecture: Architecture) -> list[dict[str, Array]]:
    """Return the example that the user passes to the tool."""
    return [_feed(architecture, _random(7, unit=False))]


def _dummy(architecture: Architecture) -> list[dict[str, Array]]:
    """Return one random batch of two."""
    return [_feed(architecture, _random(7, unit=True))]


def _ones(architecture: Architecture) -> list[dict[str, Array]]:
    """Return one batch of one, all ones."""
    return [_feed(architecture, lambda spec, shape: np.ones(shape), (1, 1, 1, 1))]


def _five(architecture: Architecture) -> list[dict[str, Array]]:
    """Return five batches of one, uniform in [0, 1), which makes every integer 0."""
    generator = np.random.default_rng(7)
    return [_feed(architecture, lambda spec, shape: generator.random(shape), (1, *EXAMPLE[1:])) for _ in range(5)]


# -- rules ----------------------------------------------------------------------------------


def _torch(expected: Arrays, actual: Arrays) -> bool:
    """Compare by position, as many outputs as both have; a NaN is never ≥ a limit, so it passes."""
    differences = [
        VerificationInfo.from_tensors(name, torch.from_numpy(left.copy()), torch.from_numpy(right.copy()))
        for (name, left), right in zip(expected.items(), actual.values(), strict=False)
    ]
    return any(difference.max_abs_diff >= 5e-3 or difference.max_rel_diff >= 1e-1 for difference in differences)


def _optimum(expected: Arrays, actual: Arrays) -> bool:
    if set(actual) != set(expected):
        return True
    return any(
        array.shape != expected[name].shape or not np.allclose(expected[name], array, atol=1e-5)
        for name, array in actual.items()
    )


def _olive(expected: Arrays, actual: Arrays) -> bool:
    """Compare the first output only."""
    left, right = (np.asarray(next(iter(arrays.values())), np.float64) for arrays in (expected, actual))
    return bool(np.sum(np.abs(left - right) > 0.1) > 0)


def _onnxsim(expected: Arrays, actual: Arrays) -> bool:
    """Compare every output of the new model."""
    return any(
        not np.allclose(array, expected[name], rtol=1e-4, atol=1e-5, equal_nan=True) for name, array in actual.items()
    )


def _assert_allclose(expected: Arrays, actual: Arrays) -> bool:
    for name, array in expected.items():
        try:
            np.testing.assert_allclose(actual[name], array)
        except AssertionError:
            return True
    return False


RULES = (
    Rule(
        "torch.onnx", "torch 2.13, torch.onnx.export(verify=True): max |a-b| ≥ 5e-3 or max |a-b| / (|a| + 1e-7) ≥ 0.1 "
        "(torch/onnx/_internal/exporter/_core.py and _verification.py), on the example", Level.ORT_ENABLE_ALL,
        _as_given, _torch,
    ),
    Rule(
        "Optimum", "optimum-onnx 0.1.0, optimum-cli export onnx: np.allclose with atol 1e-5 and names and shapes "
        "(optimum/exporters/onnx/convert.py), on one random batch of two, at ORT_ENABLE_BASIC", Level.ORT_ENABLE_BASIC,
        _dummy, _optimum,
    ),
    Rule(
        "Olive", "olive-ai 0.13.0, OnnxDiscrepancyCheck with max_elements_above_0_1: 0 (by default it has no limit): "
        "|a-b| > 0.1 in the first output (olive/passes/onnx/discrepancy_check.py), on a batch of one, all ones",
        Level.ORT_ENABLE_ALL, _ones, _olive,
    ),
    Rule(
        "onnxsim", "onnxsim 0.8.1, --check-n 5: np.allclose with rtol 1e-4 and atol 1e-5 (onnxsim/model_checking.py), "
        "on five batches of one, uniform in [0, 1), ids all 0, optimizations off", Level.ORT_DISABLE_ALL,
        _five, _onnxsim,
    ),
    Rule(
        "assert_allclose", "numpy.testing.assert_allclose with its defaults, rtol 1e-7 and atol 0, on the example",
        Level.ORT_ENABLE_ALL, _as_given, _assert_allclose,
    ),
)  # fmt: skip
"""The peers, in the order of the tables."""
