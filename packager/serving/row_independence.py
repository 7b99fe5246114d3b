"""Ask the evidence of a served bundle whether requests may be joined: see `packager.runtime.row_independence`.

A shape does not say so: `x - x.mean(0)` has the same as `x + 1`, and would mix what different clients sent.
"""

from __future__ import annotations

import logging

from packager.bundle import layout
from packager.bundle.evidence import EvidenceMalformed, parse_reference_cases
from packager.bundle.files import open_bundle
from packager.bundle.seal import MAX_RECORD_BYTES, check_listed
from packager.common.sanitize import get_first_line
from packager.errors import PackagerError
from packager.parity.numerics.verdict import ReferenceCase
from packager.runtime.loader import Bundle
from packager.runtime.row_independence import check_rows_are_independent
from packager.runtime.trust import check_pins

_log = logging.getLogger("packager.serving")


def rows_are_independent(bundle: Bundle, batch_dim: str) -> bool:
    """Return whether parts of the bundle's test inputs give, run alone, the outputs that they give in their batch."""
    try:
        reason = check_rows_are_independent(bundle.run, _read_cases(bundle), batch_dim)
    except (PackagerError, EvidenceMalformed) as error:
        reason = get_first_line(error)
    if reason is not None:
        _log.warning("%s %s: requests are not joined: %s", bundle.name, bundle.version, reason)
    return reason is None


def _read_cases(bundle: Bundle) -> list[ReferenceCase]:
    """Return the golden cases of a bundle. Raises `EvidenceMalformed`, or an error if it is not the bundle loaded."""
    with open_bundle(bundle.path) as files:
        _, seal = check_listed(files)
        check_pins(files, seal, bundle.fingerprint, None)
        return parse_reference_cases(files.read(layout.PARITY, MAX_RECORD_BYTES), files.read(layout.GOLDEN))
