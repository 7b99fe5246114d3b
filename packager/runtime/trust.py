"""Decide whether a bundle's program may run.

model.ts and model.pt2 are programs: what they contain can read and write files. Their digests say that they are the
files of this bundle, and not who wrote them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packager.signature.report import Signer

PROGRAM_TITLES = {"torchscript": "TorchScript", "torch-export": "torch.export"}
"""The artifacts that are programs, in the order in which `load` tries them, and what their formats are called."""


def trusts_program(*, fingerprint: str | None = None, signer: Signer | None = None, trust_program: bool) -> bool:
    """Return whether the program of a bundle may run.

    It may if the bundle is pinned, or if the caller says so. A `fingerprint` that has been compared pins it, and so
    does a `signer` that the caller asked for and whose signature has been verified.
    """
    return trust_program or fingerprint is not None or signer is not None
