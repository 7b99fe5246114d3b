"""Check the bundle that is measured, once and as `packager.load` does, and read what its evidence has of inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packager.benchmark.plan import SourceCase
from packager.bundle import layout
from packager.bundle.evidence import EvidenceMalformed, parse_reference_cases
from packager.bundle.files import open_bundle
from packager.bundle.fingerprint import check_fingerprint_syntax
from packager.bundle.seal import MAX_RECORD_BYTES, check_intact
from packager.common.strict_json import parse_strict_json
from packager.errors import NotABundle
from packager.runtime.trust import check_pins, trusts_program
from packager.signature.verify import read_trust


@dataclass(frozen=True)
class Subject:
    """A bundle that is intact: config.json, its fingerprint, whether its program may run, and its golden inputs."""

    path: Path
    config: dict[str, Any]
    fingerprint: str
    trusted: bool
    cases: tuple[SourceCase, ...]


def open_subject(path: Path, *, fingerprint: str | None, public_key: Path | None, trust_program: bool) -> Subject:
    """Check a bundle as `packager.load` does, and read it. Raises what `load` raises before it opens a model."""
    check_fingerprint_syntax(fingerprint)
    trust = read_trust(public_key)
    with open_bundle(path) as files:
        config, seal = check_intact(files, models=False, evidence=True)
        signer = check_pins(files, seal, fingerprint, trust)
        parity, golden = files.read(layout.PARITY, MAX_RECORD_BYTES), files.read(layout.GOLDEN)
    trusted = trusts_program(fingerprint=fingerprint, signer=signer, trust_program=trust_program)
    return Subject(path, config, seal.fingerprint, trusted, _read_cases(path, parity, golden))


def _read_cases(path: Path, parity: bytes, golden: bytes) -> tuple[SourceCase, ...]:
    try:
        cases = parse_reference_cases(parity, golden)
        fills = {case["name"]: str(case["fill"]) for case in parse_strict_json(parity)["cases"]}
        return tuple(SourceCase(f"case {case.name}", fills[case.name], case.inputs) for case in cases)
    except (EvidenceMalformed, LookupError, TypeError) as error:
        raise NotABundle(str(path), f"evidence: {error}") from None
