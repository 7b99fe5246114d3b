"""Public scanners of models find nothing dangerous in a bundle. docs/provenance.md says what each of them prints."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import projects
import pytest
from projects import SAVED_AS_PROGRAM, project, with_external_weights

import packager

SCANNERS = Path(sys.prefix) / "scanners/bin"
ENVIRONMENT = {**os.environ, "PROMPTFOO_DISABLE_TELEMETRY": "1", "COLUMNS": "200"}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SCANNERS.is_dir(), reason="make slow installs the scanners of tests/scanners.txt"),
]


@pytest.fixture(scope="module")
def bundles(built, tmp_path_factory):
    """Return a bundle of every kind by the file that distinguishes it."""
    folder = tmp_path_factory.mktemp("kinds")
    alone = projects.digits(folder / "alone", torchscript={"method": "none"})
    exported = packager.build(project(folder / "exported", SAVED_AS_PROGRAM), folder / "exported/out")
    assert exported.parity["torch-export"] == "pass"
    return {
        "model.ts": built.bundle,
        "model.onnx_data": with_external_weights(built.bundle, folder / "external"),
        "model.pt2": exported.bundle,
        "model.onnx": packager.build(alone, folder / "alone/out").bundle,
    }


def scan(tool, *arguments):
    done = subprocess.run([SCANNERS / tool, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "status"),
    [
        ("model.ts", 0),
        ("model.onnx_data", 0),
        ("model.pt2", 3),  # nothing in the bundle is of a kind that modelscan reads
        ("model.onnx", 3),
    ],
)
def test_modelscan_finds_no_issue(bundles, file, status):
    assert (bundles[file] / file).is_file()
    actual, output = scan("modelscan", "-p", bundles[file])
    assert actual == status, output
    assert "No issues found!" in output
    assert "--- Errors ---" not in output
    scanned = re.findall(rf"Scanning {re.escape(str(bundles[file]))}/(\S+) using", output)
    assert (
        scanned
        == {
            "model.ts": ["model.ts:model/constants.pkl", "model.ts:model/data.pkl"],
            "model.onnx_data": ["model.ts:model/constants.pkl", "model.ts:model/data.pkl"],
            "model.pt2": ["model.pt2:model/data/sample_inputs/model.pt"],  # empty, and skipped for it
            "model.onnx": [],
        }[file]
    )


@pytest.mark.parametrize("file", ["model.ts", "model.onnx_data", "model.pt2", "model.onnx"])
def test_picklescan_finds_nothing_dangerous(bundles, file):
    paths = [bundles[file], *(path for path in bundles[file].iterdir() if path.suffix in (".ts", ".pt2"))]
    for path in paths:  # in a folder, it reads files by their suffix, and knows neither of these
        status, output = scan("picklescan", "-p", path)
        assert status == 0, output
        assert "Infected files: 0\n" in output and "Dangerous globals: 0\n" in output
        assert ("Scanned files: 2\n" in output) == (path.name == "model.ts")


@pytest.mark.parametrize(
    ("file", "status", "findings"),
    [
        ("model.ts", 1, {("warning", "model.ts")}),
        ("model.onnx_data", 1, {("warning", "model.ts")}),
        ("model.pt2", 1, {("critical", "model.pt2:model/data/sample_inputs/model.pt")}),
        ("model.onnx", 2, set()),
    ],
)
def test_modelaudit_warns_of_the_fallback_alone(bundles, file, status, findings, tmp_path):
    report = tmp_path / "report.json"
    actual, output = scan("modelaudit", "scan", "--no-cache", "--format", "json", "-o", report, bundles[file])
    assert actual == status, output
    issues = [issue for issue in json.loads(report.read_text())["issues"] if issue["severity"] != "info"]
    locations = [issue["location"].removeprefix(f"{bundles[file]}/") for issue in issues]
    if file == "model.pt2":
        (issue,) = issues
        assert issue["message"].startswith("Not a valid zip file")  # torch wants the entry, and packager empties it
    else:
        locations = [location.partition(":")[0] for location in locations]
    assert {(issue["severity"], location) for issue, location in zip(issues, locations, strict=True)} == findings
