"""Compute the standard documents of a bundle from its records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from packager.bundle import layout, records
from packager.provenance.bill_of_materials import make_bill_of_materials
from packager.provenance.build_provenance import make_build_provenance
from packager.provenance.parity_attestation import make_parity_attestation


def make_documents(
    config: records.BundleConfig,
    parity: records.ParityRecord,
    build: records.BuildRecord,
    digests: Mapping[str, str],
) -> dict[str, bytes]:
    """Return the bytes of the documents by path, UTF-8 JSON like the records.

    `digests` are the SHA-256 in hex of the bundle's files by path; those of the documents themselves are ignored.
    Raises KeyError if the digest of a file that every bundle has is missing.
    """
    files = {path: digests[path] for path in sorted(digests) if path not in layout.DOCUMENTS}
    documents: dict[str, dict[str, Any]] = {
        layout.PARITY_ATTESTATION: make_parity_attestation(config, parity, files),
        layout.PROVENANCE: make_build_provenance(config, build, files),
        layout.BILL_OF_MATERIALS: make_bill_of_materials(config, parity, files),
    }
    return {
        path: (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
        for path, document in documents.items()
    }
