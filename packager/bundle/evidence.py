"""The golden evidence: test inputs with PyTorch's outputs, written by a build and replayed by anyone.

golden.safetensors names its tensors `CASE/input/NAME` and `CASE/output/NAME`; their tolerances are in
parity.json, under the same seal. Cases are included smallest first, up to 10 MB or 5 % of the weights,
whichever is larger; parity.json marks the included ones as `golden`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from packager.bundle import layout
from packager.common.strict_json import parse_strict_json
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.decisions import DecisionRule
from packager.parity.numerics.verdict import ReferenceCase

_MIN_BUDGET_BYTES = 10_000_000
_BUDGET_SHARE = 0.05


class EvidenceMalformed(Exception):
    """parity.json and golden.safetensors cannot be read, or do not belong together."""


def choose_golden_cases(reference_cases: Sequence[ReferenceCase], weight_bytes: int) -> frozenset[str]:
    """Choose the cases whose tensors ship with the bundle: always the smallest, then more within the budget.

    `weight_bytes` is the size of the model's weights. Returns names of cases.
    """
    budget = max(_MIN_BUDGET_BYTES, int(_BUDGET_SHARE * weight_bytes))
    chosen: set[str] = set()
    used = 0
    for case in sorted(reference_cases, key=lambda case: (_case_bytes(case), case.name)):
        used += _case_bytes(case)
        if chosen and used > budget:
            break
        chosen.add(case.name)
    return frozenset(chosen)


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
        tensors = safetensors.numpy.load(golden)
        in_order = sorted(tensors.items())
        reference_cases = []
        for case in cases[:1] if first_only else cases:
            head = f"{case['name']}/input/"
            outputs = case["outputs"]
            reference_cases.append(
                ReferenceCase(
                    case["name"],
                    {name.removeprefix(head): array for name, array in in_order if name.startswith(head)},
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
