"""The result of the parity check as an in-toto statement with a test-result predicate.

Specification: https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packager.bundle import layout, records
from packager.provenance.identifiers import describe_file


def make_parity_attestation(
    config: records.BundleConfig, parity: records.ParityRecord, files: Mapping[str, str]
) -> dict[str, Any]:
    """Return the statement about the models: one test for each backend and test case.

    `files` are digests by path. What was not compared is a warning. An artifact that fails does not ship, so
    no test of a bundle has failed.
    """
    passed = [
        f"{backend}/{case.name}"
        for backend, verdict in parity.backends.items()
        if verdict.verdict == "pass"
        for case in parity.cases
    ]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [describe_file(*file) for file in config.artifacts.list_files()],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {
            "result": "WARNED" if parity.not_checked else "PASSED",
            "configuration": [
                describe_file(path, files[path]) for path in (layout.PARITY, layout.GOLDEN, layout.BUILD)
            ],
            "passedTests": passed,
            "warnedTests": [f"not checked: {item}" for item in parity.not_checked],
            "failedTests": [],
        },
    }
