"""Hold the executable of a bundle against Python: the verdict of its evidence, and every output of every golden case.

    python -m benchmarks.models.executable BUNDLE

Prints one JSON object: how many cases ran, and what differs. It needs the native programs (`make runners`).
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import packager
from packager.bundle.evidence import read_reference_cases
from packager.standalone.assemble import make_standalone


def main(bundle: Path) -> None:
    """Make the executable, compare it on all golden cases, and print the differences."""
    cases = read_reference_cases(bundle)
    with tempfile.TemporaryDirectory() as folder, packager.load(bundle) as loaded:
        executable = Path(folder, "model")
        make_standalone(bundle, executable)
        differences = compare_verdicts(bundle, executable)
        for case in cases:
            given, taken = Path(folder, "in.npz"), Path(folder, "out.npz")
            np.savez(given, **dict(case.inputs))  # type: ignore[arg-type]  # a stub takes no names for keywords
            ask(executable, "run", "--input", given, "--output", taken)
            differences += compare_outputs(case.name, loaded.run(dict(case.inputs)), dict(np.load(taken)))
    print(json.dumps({"cases": len(cases), "differences": differences}))


def compare_verdicts(bundle: Path, executable: Path) -> list[str]:
    """Compare the reports of `verify`, without the notes, which say what each did not check."""
    report = json.loads(json.dumps(dataclasses.asdict(packager.verify(bundle)), default=str))
    answer = json.loads(ask(executable, "verify", "--json"))
    return [
        f"verify: {name} is {answer.get(name)!r}, and {report[name]!r} in Python"
        for name in ("fingerprint", "integrity", "structure", "parity")
        if name in report and answer.get(name) != report[name]
    ]


def compare_outputs(case: str, expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """Compare names, order, dtypes, shapes and bits of the outputs of one case."""
    if list(expected) != list(actual):
        return [f"{case}: outputs {list(actual)}, and {list(expected)} in Python"]
    return [
        f"{case}: {name} differs"
        for name, array in expected.items()
        if (array.dtype, array.shape) != (actual[name].dtype, actual[name].shape)
        or array.tobytes() != actual[name].tobytes()
    ]


def ask(executable: Path, *arguments: object) -> str:
    """Return what the executable prints. Raises `CalledProcessError` if it fails."""
    command = [executable, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
