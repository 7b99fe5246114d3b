"""The golden evidence: inputs and PyTorch's outputs, written by a build and replayed by anybody.

golden.safetensors names its tensors `CASE/input/NAME` and `CASE/output/NAME`; the limits that they
are judged with stand in parity.json, under the same seal. Cases travel, smallest first, as long as
they stay under 10 MB or 5 % of the weights, whichever is larger; parity.json says which do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from packager.bundle import layout
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.decisions import DecisionRule
from packager.parity.numerics.verdict import ReferenceCase

_MIN_BUDGET_BYTES = 10_000_000
_BUDGET_SHARE = 0.05


class EvidenceMalformed(Exception):
    """parity.json and golden.safetensors do not belong together."""


def choose_golden_cases(expectations: Sequence[ReferenceCase], weight_bytes: int) -> frozenset[str]:
    """The names of the cases that travel: the smallest always, then as many as the budget holds."""
    budget = max(_MIN_BUDGET_BYTES, int(_BUDGET_SHARE * weight_bytes))
    chosen: set[str] = set()
    used = 0
    for one in sorted(expectations, key=lambda one: (_case_bytes(one), one.name)):
        if chosen and used + _case_bytes(one) > budget:
            break
        chosen.add(one.name)
        used += _case_bytes(one)
    return frozenset(chosen)


def serialize_golden_cases(expectations: Sequence[ReferenceCase], chosen: frozenset[str]) -> bytes:
    """The content of golden.safetensors."""
    tensors = {}
    for one in expectations:
        if one.name in chosen:
            tensors.update({f"{one.name}/input/{name}": array for name, array in one.inputs.items()})
            tensors.update({f"{one.name}/output/{name}": array for name, array in one.outputs.items()})
    # safetensors writes the memory as it lies: a transposed array would come back as another one.
    content: bytes = safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in tensors.items()})
    return content


def read_reference_cases(folder: Path, *, first_only: bool = False) -> list[ReferenceCase]:
    """The cases that travel with a bundle, with their limits. Raises `EvidenceMalformed`."""
    try:
        record = json.loads((folder / layout.PARITY).read_text(encoding="utf-8"))
        cases = [case for case in record["cases"] if case["golden"]]
        decisions = {
            name: DecisionRule(one["rule"], one["axis"], one["tie"]) for name, one in record["decisions"].items()
        }  # fmt: skip
        tensors = safetensors.numpy.load_file(folder / layout.GOLDEN)
        found = []
        for case in cases[:1] if first_only else cases:
            head = f"{case['name']}/input/"
            found.append(
                ReferenceCase(
                    case["name"],
                    {name.removeprefix(head): one for name, one in tensors.items() if name.startswith(head)},
                    {name: tensors[f"{case['name']}/output/{name}"] for name in case["outputs"]},
                    {name: ElementTolerance(one["atol"], one["rtol"]) for name, one in case["outputs"].items()},
                    case["sizes"],
                    decisions=decisions,
                )
            )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        raise EvidenceMalformed(f"{type(error).__name__}: {error}") from None
    return found


def _case_bytes(expectation: ReferenceCase) -> int:
    arrays = (*expectation.inputs.values(), *expectation.outputs.values())
    return sum(array.nbytes for array in arrays)
