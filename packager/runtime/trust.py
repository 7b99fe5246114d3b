"""Decide whether a bundle's program may run.

model.ts and model.pt2 are programs: what they contain can read and write files. Their digests say that they are the
files of this bundle, and not who wrote them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packager.bundle.files import BundleFiles
from packager.bundle.seal import Seal, read_signature
from packager.errors import FingerprintWrong

if TYPE_CHECKING:
    from packager.signature.report import Signer
    from packager.signature.verify import Trust

PROGRAM_TITLES = {"torchscript": "TorchScript", "torch-export": "torch.export"}
"""The artifacts that are programs, in the order in which `load` tries them, and what their formats are called."""


def trusts_program(*, fingerprint: str | None = None, signer: Signer | None = None, trust_program: bool) -> bool:
    """Return whether the program of a bundle may run.

    It may if the bundle is pinned, or if the caller says so. A `fingerprint` that has been compared pins it, and so
    does a `signer` that the caller asked for and whose signature has been verified.
    """
    return trust_program or fingerprint is not None or signer is not None


def check_pins(files: BundleFiles, seal: Seal, fingerprint: str | None, trust: Trust | None) -> Signer | None:
    """Check that a bundle is the one that a caller asked for: by its fingerprint, by who signed it, or both.

    None accepts any. Returns the signer if `trust` was given. Raises `FingerprintWrong`, `SignatureMissing`,
    `SignatureWrong` or `CertificateRefused`.
    """
    if fingerprint is not None and fingerprint != seal.fingerprint:
        raise FingerprintWrong(str(files.path), fingerprint, seal.fingerprint)
    if trust is None:
        return None
    from packager.signature.verify import check_signature

    return check_signature(read_signature(files), seal.sums, seal.fingerprint, trust, str(files.path))
