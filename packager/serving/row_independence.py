"""Find out whether the rows of a batch are independent of each other, so that requests may be joined.

A shape does not say so: `x - x.mean(0)` has the same as `x + 1`, and would mix what different clients sent. The golden
evidence of a bundle has test inputs with several rows and PyTorch's outputs for them. Requests are joined only if each
of these rows, run alone, gives its outputs within the tolerance of the bundle.
"""

from __future__ import annotations

import hashlib
import logging

from packager.bundle import layout
from packager.bundle.evidence import EvidenceMalformed, parse_reference_cases
from packager.bundle.files import open_bundle
from packager.bundle.seal import read_sums
from packager.errors import PackagerError
from packager.parity.numerics.compare import ShapesDiffer, compare
from packager.parity.numerics.verdict import ReferenceCase
from packager.runtime.loader import Bundle

_MAX_CASES = 3
_MAX_ROWS = 8
_log = logging.getLogger("packager.serving")


def rows_are_independent(bundle: Bundle, batch_dim: str) -> bool:
    """Return whether rows of the bundle's test inputs give, run alone, the outputs that they give in their batch."""
    try:
        cases = _read_cases(bundle, batch_dim)
        reason = "its evidence has no test case with several rows" if not cases else ""
        for case in cases:
            if not _rows_agree(bundle, case, bundle.config["dims"][batch_dim]["min"]):
                reason = f"in test case {case.name}, a row alone gives other values than in its batch"
                break
    except (PackagerError, EvidenceMalformed, ShapesDiffer) as error:
        reason = str(error).splitlines()[0]
    if reason:
        _log.warning("%s %s: requests are not joined: %s", bundle.name, bundle.version, reason)
    return not reason


def _read_cases(bundle: Bundle, batch_dim: str) -> list[ReferenceCase]:
    """Return the smallest golden cases with rows that differ. Raises `EvidenceMalformed`."""
    with open_bundle(bundle.path) as files:
        seal = read_sums(files)
        contents = []
        for path in (layout.PARITY, layout.GOLDEN):
            content = files.read(path)
            if seal.fingerprint != bundle.fingerprint or hashlib.sha256(content).hexdigest() != seal.sums[path]:
                raise EvidenceMalformed(f"{path} is not the one of the bundle that was loaded")
            contents.append(content)
    cases = [
        case for case in parse_reference_cases(*contents) if case.sizes.get(batch_dim, 1) > 1 and _rows_differ(case)
    ]
    return sorted(cases, key=lambda case: sum(array.size for array in case.inputs.values()))[:_MAX_CASES]


def _rows_differ(case: ReferenceCase) -> bool:
    """Return whether the rows of a case differ: equal ones have the mean of the batch as their own."""
    arrays = [array for array in case.inputs.values() if array.size]
    return any(array[:1].tobytes() != array[1:2].tobytes() for array in arrays)


def _rows_agree(bundle: Bundle, case: ReferenceCase, at_once: int) -> bool:
    """Run `at_once` rows at a time, the smallest batch; return whether each gives its outputs of the whole batch."""
    rows = len(next(iter(case.inputs.values())))
    for start in range(0, min(rows - at_once, _MAX_ROWS) + 1, at_once):
        part = slice(start, start + at_once)
        outputs = bundle.run({name: array[part] for name, array in case.inputs.items()})
        for name, array in outputs.items():
            if not compare(case.outputs[name][part], array, case.tolerances[name]).within_tolerance:
                return False
    return True
