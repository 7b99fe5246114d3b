"""The golden evidence: test inputs with PyTorch's outputs, written by a build and replayed by anyone.

golden.safetensors names its tensors `CASE/input/NAME` and `CASE/output/NAME`; their tolerances are in
parity.json, under the same seal. Cases are included up to 10 MB or 5 % of the weights, whichever is larger: those with
the ends of an input's values first, then the smallest; parity.json marks the included ones as `golden`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from packager.bundle import layout
from packager.common.array_files import Array, check_tensor_count
from packager.common.strict_json import parse_strict_json
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.decisions import DecisionRule
from packager.parity.numerics.verdict import ReferenceCase

_MIN_BUDGET_BYTES = 10_000_000
_BUDGET_SHARE = 0.05


class EvidenceMalformed(Exception):
    """parity.json and golden.safetensors cannot be read, or do not belong together."""


def choose_golden_cases(reference_cases: Sequence[ReferenceCase], weight_bytes: int) -> frozenset[str]:
    """Choose the cases whose tensors ship with the bundle, within the budget, and always the smallest.

    First come the cases with the smallest and the largest value of each input: a row of an embedding table that is
    wrong shows only where its index appears, and the first and last rows are the likeliest to be. Then come the others,
    the smallest first. `weight_bytes` is the size of the model's weights. Returns names of cases.
    """
    budget = max(_MIN_BUDGET_BYTES, int(_BUDGET_SHARE * weight_bytes))
    by_size = sorted(reference_cases, key=lambda case: (_case_bytes(case), case.name))
    extremes = _find_extremes(by_size)
    chosen: set[str] = set()
    used = 0
    for case in [*by_size[:1], *sorted(by_size[1:], key=lambda case: case.name not in extremes)]:
        if not chosen or used + _case_bytes(case) <= budget:
            used += _case_bytes(case)
            chosen.add(case.name)
    return frozenset(chosen)


def _find_extremes(cases: Sequence[ReferenceCase]) -> set[str]:
    """Return the names of the first cases with the smallest and with the largest value of each input."""
    names = set()
    for name in cases[0].inputs if cases else ():
        filled = [case for case in cases if case.inputs[name].size]
        if filled:
            names.add(min(filled, key=lambda case: case.inputs[name].min()).name)
            names.add(max(filled, key=lambda case: case.inputs[name].max()).name)
    return names


def serialize_golden_cases(reference_cases: Sequence[ReferenceCase], chosen: frozenset[str]) -> bytes:
    """Return the bytes of golden.safetensors, with the inputs and outputs of the cases named in `chosen`."""
    tensors = {}
    for case in reference_cases:
        if case.name in chosen:
            tensors.update({f"{case.name}/input/{name}": array for name, array in case.inputs.items()})
            tensors.update({f"{case.name}/output/{name}": array for name, array in case.outputs.items()})
    # safetensors writes the memory of an array as it is: the values of a transposed one would change places.
    content: bytes = safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in tensors.items()})
    return content


def read_reference_cases(folder: Path, *, first_only: bool = False) -> list[ReferenceCase]:
    """Read the golden cases of the bundle in `folder`, with their tolerances; only the first if `first_only`.

    Raises `EvidenceMalformed`.
    """
    try:
        parity, golden = (folder / layout.PARITY).read_bytes(), (folder / layout.GOLDEN).read_bytes()
    except OSError as error:
        raise EvidenceMalformed(f"{type(error).__name__}: {error}") from None
    return parse_reference_cases(parity, golden, first_only=first_only)


def parse_reference_cases(parity: bytes, golden: bytes, *, first_only: bool = False) -> list[ReferenceCase]:
    """Parse parity.json and golden.safetensors into cases, or into the first alone.

    Raises `EvidenceMalformed`.
    """
    try:
        record = parse_strict_json(parity)
        cases = [case for case in record["cases"] if case["golden"]]
        decisions = {
            name: DecisionRule(rule["rule"], rule["axis"], rule["tie"]) for name, rule in record["decisions"].items()
        }
        check_tensor_count(io.BytesIO(golden))
        tensors: dict[str, Array] = safetensors.numpy.load(golden)
        inputs_by_case: dict[str, dict[str, Array]] = {}
        for key in sorted(key for key in tensors if "/input/" in key):
            case_name, _, name = key.partition("/input/")
            inputs_by_case.setdefault(case_name, {})[name] = tensors[key]
        reference_cases = []
        for case in cases[:1] if first_only else cases:
            outputs = case["outputs"]
            reference_cases.append(
                ReferenceCase(
                    case["name"],
                    inputs_by_case.get(case["name"], {}),
                    {name: tensors[f"{case['name']}/output/{name}"] for name in outputs},
                    {name: ElementTolerance(output["atol"], output["rtol"]) for name, output in outputs.items()},
                    case["sizes"],
                    decisions=decisions,
                )
            )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        raise EvidenceMalformed(f"{type(error).__name__}: {error}") from None
    return reference_cases


def _case_bytes(case: ReferenceCase) -> int:
    return sum(array.nbytes for array in (*case.inputs.values(), *case.outputs.values()))
