"""Ask the evidence of a served bundle whether requests may be joined: see `packager.runtime.row_independence`.

A shape does not say so: `x - x.mean(0)` has the same as `x + 1`, and would mix what different clients sent.
"""

from __future__ import annotations

import hashlib
import logging

from packager.bundle import layout
from packager.bundle.evidence import EvidenceMalformed, parse_reference_cases
from packager.bundle.files import open_bundle
from packager.bundle.fingerprint import SumsMalformed
from packager.bundle.seal import MAX_RECORD_BYTES, read_sums
from packager.errors import PackagerError
from packager.parity.numerics.verdict import ReferenceCase
from packager.runtime.loader import Bundle
from packager.runtime.row_independence import check_rows_are_independent

_log = logging.getLogger("packager.serving")


def rows_are_independent(bundle: Bundle, batch_dim: str) -> bool:
    """Return whether parts of the bundle's test inputs give, run alone, the outputs that they give in their batch."""
    try:
        reason = check_rows_are_independent(bundle.run, _read_cases(bundle), batch_dim)
    except (PackagerError, EvidenceMalformed, SumsMalformed) as error:
        reason = str(error).splitlines()[0]
    if reason is not None:
        _log.warning("%s %s: requests are not joined: %s", bundle.name, bundle.version, reason)
    return reason is None


def _read_cases(bundle: Bundle) -> list[ReferenceCase]:
    """Return the golden cases of a bundle. Raises `EvidenceMalformed`, and what opening a bundle raises."""
    with open_bundle(bundle.path) as files:
        seal = read_sums(files)
        contents = {
            layout.PARITY: files.read(layout.PARITY, MAX_RECORD_BYTES),
            layout.GOLDEN: files.read(layout.GOLDEN),
        }
    for path, content in contents.items():
        if seal.fingerprint != bundle.fingerprint or hashlib.sha256(content).hexdigest() != seal.sums.get(path):
            raise EvidenceMalformed(f"{path} is not the one of the bundle that was loaded")
    return parse_reference_cases(contents[layout.PARITY], contents[layout.GOLDEN])
