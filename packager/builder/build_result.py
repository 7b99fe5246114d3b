"""The result of a build, as `packager.build` returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.builder.incremental.explain import Explanation


@dataclass(frozen=True)
class BuildResult:
    """A bundle that was built and proven.

    `cached` says whether it came from the cache as a whole. `parity` is the verdict of each backend. `stages` are
    wall-clock seconds by stage, in order, and `recalled` those stages that the cache had. `facts` are the rows of the
    closing table. `notes` are what this build reported on its way. `explanation` says why each stage ran or did not.
    """

    bundle: Path
    archive: Path | None
    fingerprint: str
    cached: bool
    parity: Mapping[str, str]
    stages: Mapping[str, float]
    recalled: frozenset[str]
    facts: Mapping[str, str]
    notes: tuple[str, ...]
    explanation: tuple[Explanation, ...]

    def as_json(self) -> dict[str, object]:
        """Return the object that `package build --json` prints."""
        return {
            "bundle": str(self.bundle),
            "archive": str(self.archive) if self.archive is not None else None,
            "fingerprint": self.fingerprint,
            "cached": self.cached,
            "stages": [
                {"name": name, "cached": name in self.recalled, "seconds": round(seconds, 3)}
                for name, seconds in self.stages.items()
            ],
            "parity": dict(self.parity),
            "not_compared": self.facts.get("not compared", "").splitlines(),
            "notes": list(self.notes),
        }
