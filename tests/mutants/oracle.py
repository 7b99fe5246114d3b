"""Measure the true effect of a mutant, independently of the parity check.

The outputs of the mutant are compared with those of the original on many valid inputs, which no build uses: they are
drawn by a generator of their own, in other sizes. The unit is the noise floor of the typical test case, as the bundle's
evidence records it. Rows on which correct evaluations of the original disagree (without optimization, or with weights
one unit in the last place away) say nothing about a mutant and are left out: rounding breaks a tie there, or the model
is ill-conditioned.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from architectures import Architecture
from onnx import ModelProto, numpy_helper
from onnxruntime import GraphOptimizationLevel as Level

from packager.bundle import layout
from packager.project.manifest import InputSpec

MUST = 10.0
"""A mutant must be found if its effect is more than this many noise floors on some valid input."""

ROWS = 320
_STEADY = 5.0
Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Effect:
    """The largest difference from the original, in noise floors, and the output and the input where it occurs."""

    floors: float
    where: str

    @property
    def must_be_found(self) -> bool:
        """Whether no check may miss it."""
        return self.floors > MUST


def floors(expected: np.ndarray, actual: np.ndarray, noise: float, small: float) -> np.ndarray:
    """Return the error of each element in noise floors, |actual - expected| / (noise × (|expected| + small)).

    `small` is the scale of a small element in that output, as for tolerances. The error is infinite where a NaN, an
    infinity, an integer or a boolean differs.
    """
    if expected.dtype.kind != "f":
        return np.where(expected != actual, np.inf, 0.0)
    left, right = expected.astype(np.float64), actual.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    finite = np.isfinite(left) & np.isfinite(right)
    with np.errstate(all="ignore"):
        unit = noise * (np.abs(left) + small)
        return np.where(same, 0.0, np.where(finite, np.abs(right - left) / unit, np.inf))


def smalls(arrays: Sequence[np.ndarray]) -> list[float]:
    """Return the scale of each array: the lower quartile of its magnitudes, or of all arrays', whichever is larger.

    Zeros are left out, and values that more than a sixteenth of the elements share, as those of a mask. This repeats
    the definition of `estimate_scales` on purpose: the oracle uses no code of packager.parity.
    """
    if not arrays or arrays[0].dtype.kind != "f":
        return [0.0] * len(arrays)  # they must agree exactly
    kept = []
    for array in arrays:
        values, counts = np.unique(np.abs(array[np.isfinite(array) & (array != 0)]), return_counts=True)
        single = counts <= max(2, counts.sum() / 16)
        kept.append(np.repeat(values[single], counts[single]) if single.any() else values)
    quartiles = [float(np.quantile(values, 0.25)) if values.size else 0.0 for values in (np.concatenate(kept), *kept)]
    overall, *own = quartiles
    return [max(overall, quartile) for quartile in own]


class Oracle:
    """The outputs of the original on every input, to compare mutants with; `again` are other correct evaluations."""

    def __init__(self, inputs: Sequence[Arrays], noise: Mapping[str, float], run: Run, again: Sequence[Run]) -> None:
        self._inputs = inputs
        self._noise = noise
        self._expected = [run(feed) for feed in inputs]
        self._small = {name: smalls([outputs[name] for outputs in self._expected]) for name in self._expected[0]}
        apart = [[self._floors(number, other(feed)) for other in again] for number, feed in enumerate(inputs)]
        self._steady = [
            {name: _steady([errors[name] for errors in evaluations]) for name in evaluations[0]}
            for evaluations in apart
        ]
        self.left_aside = sum(int((~rows).sum()) for steady in self._steady for rows in steady.values())

    def effect(self, run: Run) -> Effect:
        """Return the effect of a mutant; infinite if it does not run, or returns other names, dtypes or shapes."""
        worst = Effect(0.0, "nowhere")
        for number, (feed, expected) in enumerate(zip(self._inputs, self._expected, strict=True)):
            try:
                actual = run(feed)
            except Exception as error:  # noqa: BLE001 (any of a dozen unrelated classes; each means: does not run)
                return Effect(np.inf, f"it does not run: {' '.join(str(error).split())[:80]}")
            if _form(actual) != _form(expected):
                return Effect(np.inf, f"names, dtypes or shapes on input {number}")
            for name, errors in self._floors(number, actual).items():
                largest = float(errors[self._steady[number][name]].max(initial=0.0))
                if largest > worst.floors:
                    worst = Effect(largest, f"{name} on input {number}")
        return worst

    def _floors(self, number: int, actual: Arrays) -> dict[str, np.ndarray]:
        return {
            name: floors(array, actual[name], self._noise[name], self._small[name][number])
            for name, array in self._expected[number].items()
        }


def _steady(apart: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rows on which all of these are within a few noise floors; for a scalar, whether it is."""
    elements = np.all([errors <= _STEADY for errors in apart], axis=0)
    return np.asarray(elements.reshape(*elements.shape[:1], -1).all(axis=-1) if elements.ndim else elements)


def _form(outputs: Arrays) -> list[tuple[str, np.dtype, tuple[int, ...]]]:
    return [(name, array.dtype, array.shape) for name, array in outputs.items()]


def noise(bundle: Path) -> dict[str, float]:
    """Return the noise floor of each output, the median of its cases; 0 for outputs that must match exactly."""
    record = json.loads((bundle / layout.PARITY).read_text())
    floors_by_output = {}
    for name, tolerance in record["tolerance"].items():
        limits = [case["outputs"][name]["rtol"] for case in record["cases"]]
        floors_by_output[name] = float(np.median(limits)) / (tolerance["multiple"] or 1)
    return floors_by_output


class Session:
    """An ONNX model with the options of the loader, or at a different optimization level or number of threads."""

    def __init__(self, model: bytes, level: Level | None = None, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if level is not None:
            options.graph_optimization_level = level
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.signature = [
            (value.name, value.type, value.shape)
            for value in (*self._session.get_inputs(), *self._session.get_outputs())
        ]

    def run(self, feed: Arrays) -> dict[str, np.ndarray]:
        """Run the model on arrays by input name; returns arrays by output name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(None, dict(feed)), strict=True))


def moved_weights(content: bytes, seed: int) -> bytes:
    """Return the model with every weight moved by one unit in the last place, up or down; zeros, as of masks, stay."""
    generator = np.random.default_rng(seed)
    model = ModelProto.FromString(content)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype.kind == "f":
            ends = np.where(generator.random(value.shape) < 0.5, -np.inf, np.inf).astype(value.dtype)
            moved = np.where(np.isfinite(value) & (value != 0), np.nextafter(value, ends), value)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    return model.SerializeToString()


def read_onnx(bundle: Path) -> bytes:
    """Return the ONNX model of a bundle, with its weights inside wherever the bundle has them."""
    content: bytes = onnx.load(bundle / layout.ONNX).SerializeToString()
    return content


class OnnxOracle:
    """The oracle of the ONNX model in a bundle."""

    def __init__(self, architecture: Architecture, bundle: Path, rows: int = ROWS) -> None:
        content = read_onnx(bundle)
        self._original = Session(content)
        plain = Session(content, Level.ORT_DISABLE_ALL)
        moved = [Session(moved_weights(content, seed)) for seed in (0, 1)]
        again = [session.run for session in (plain, *moved)]
        self.oracle = Oracle(list(draw(architecture, rows)), noise(bundle), self._original.run, again)

    def effect(self, model: ModelProto) -> Effect:
        """Return the effect of a mutant; infinite if it does not load, or declares other inputs or outputs."""
        try:
            mutant = Session(model.SerializeToString())
        except Exception as error:  # noqa: BLE001 (as above)
            return Effect(np.inf, f"it does not load: {' '.join(str(error).split())[:80]}")
        if mutant.signature != self._original.signature:
            return Effect(np.inf, "the declared inputs or outputs")
        return self.oracle.effect(mutant.run)


# -- inputs ---------------------------------------------------------------------------------

_FILLS = ("random", "random", "random", "ends", "sparse", "low", "high", "large")


def draw(architecture: Architecture, rows: int = ROWS, seed: int = 1) -> Iterator[dict[str, np.ndarray]]:
    """Draw inputs of many sizes until there are enough rows: random, at the ends of the range, sparse, constant."""
    generator = np.random.default_rng(seed)
    drawn = number = 0
    while drawn < rows:
        sizes = {
            name: int(generator.integers(limits["min"], limits["max"], endpoint=True))
            for name, limits in architecture.dims.items()
        }
        if number % 4 == 0:
            sizes = {name: limits["max"] for name, limits in architecture.dims.items()}
        fill = _FILLS[number % len(_FILLS)]
        feed = {
            name: _array(spec, [sizes.get(dim, dim) for dim in spec["shape"]], fill, generator)
            for name, spec in architecture.inputs.items()
        }
        yield feed
        drawn += sizes.get("batch", 1)
        number += 1


def _array(spec: Mapping[str, Any], shape: list[int], fill: str, generator: np.random.Generator) -> np.ndarray:
    given = InputSpec.model_validate(spec)
    dtype = np.dtype(given.dtype)
    if given.range is None and dtype.kind != "b":
        scale = {"sparse": 0.1, "low": 0.1, "large": 4.0}.get(fill, 1.0)
        values = scale * generator.standard_normal(shape)
        return np.asarray(np.where(generator.random(shape) < 0.9, 0.0, values) if fill == "sparse" else values, dtype)
    low, high = (0, 1) if dtype.kind == "b" else given.value_bounds()
    if dtype.kind in "iub":
        values = generator.integers(low, high, shape, endpoint=True)
    else:
        values = generator.uniform(low, high, shape)
    if fill == "ends":
        values = np.where(generator.random(shape) < 0.5, low, high)
    elif fill == "sparse":
        values = np.where(generator.random(shape) < 0.9, low, values)
    elif fill in ("low", "high"):
        values = np.full(shape, low if fill == "low" else high)
    return np.asarray(values, dtype)
