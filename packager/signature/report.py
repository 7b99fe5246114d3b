"""Define what is known about the signature of a bundle. Nothing here needs a library."""

from __future__ import annotations

from dataclasses import dataclass

from packager.errors import Refused


@dataclass(frozen=True)
class Signer:
    """The signer of a bundle.

    - `key_id`: the SHA-256 of the public key as PEM, in hex; model.sig has it as the key's hint.
    - `subject`: the subject of the signer's certificate, such as `CN=Release,O=Example`; None for a bare key.
    """

    key_id: str
    subject: str | None = None


@dataclass(frozen=True)
class SignatureReport:
    """The result of checking the signature of a bundle.

    - `verdict`: pass, fail or not-checked.
    - `signer`: who signed; None unless the verdict is pass.
    - `error`: why the verdict is fail; None otherwise.
    """

    verdict: str
    signer: Signer | None = None
    error: Refused | None = None

    def as_json(self) -> dict[str, object]:
        """Return the object that `package verify --json` prints under `signature`."""
        return {
            "verdict": self.verdict,
            "key_id": self.signer.key_id if self.signer else None,
            "subject": self.signer.subject if self.signer else None,
            "error": self.error.as_json() if self.error else None,
        }
