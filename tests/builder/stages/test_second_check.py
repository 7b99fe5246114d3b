"""An artifact that fails is checked a second time, and what that shows is part of the evidence."""

import json
from dataclasses import replace

import pytest
import yaml
from projects import LINEAR, project

import packager
from packager.builder.stages import torchscript_stage
from packager.errors import ParityFailed
from packager.parity import noise_measurement, noise_variants, reference
from packager.parity.numerics.compare import ElementTolerance

AUDIO = {"x": {"dtype": "float32", "shape": ["batch", 800], "range": [-1, 1]}}
LAYERS = "nn.Sequential(nn.Conv1d(1, 16, 10, 5), nn.GroupNorm(16, 16), nn.GELU(), nn.Conv1d(16, 4, 3))"
NORMALIZED = LINEAR.replace("nn.Linear(4, 3)", LAYERS).replace("self.layer(x)", "self.layer(x[:, None]).mean(2)")


@pytest.fixture
def audio(tmp_path, monkeypatch):
    """The manifest of a module that amplifies rounding on constant audio; its noise is measured on random audio."""
    monkeypatch.setattr(noise_measurement, "NOISE_SHARE", 0.0)
    return project(tmp_path / "audio", NORMALIZED, inputs=AUDIO)


def parity_of(bundle):
    return json.loads((bundle / "evidence/parity.json").read_text())


def test_the_noise_of_the_cases_that_failed_is_in_the_evidence(audio, tmp_path):
    bundle = packager.build(audio, tmp_path / "out").bundle
    tolerance = parity_of(bundle)["tolerance"]["output_0"]
    assert noise_variants.ROUNDED_RESULTS in tolerance["parts"]
    rtol = {case["fill"]: case["outputs"]["output_0"]["rtol"] for case in parity_of(bundle)["cases"]}
    assert rtol["low"] > 10 * rtol["random"]
    assert packager.verify(bundle, trust_program=True).ok


def test_a_graph_that_fails_on_the_probe_is_judged_by_the_noise_of_that_case(tmp_path, monkeypatch):
    def measure_too_little(*arguments, **options):
        cases = reference.measure_probe(*arguments, **options)
        return tuple(replace(case, tolerances={"output_0": ElementTolerance(1e-12, 1e-12)}) for case in cases)

    monkeypatch.setattr(torchscript_stage, "measure_probe", measure_too_little)
    bundle = packager.build(project(tmp_path / "audio", NORMALIZED, inputs=AUDIO), tmp_path / "out", cache="off").bundle
    exported = [stage for stage in parity_of(bundle)["stages"] if stage["name"].startswith("export: ")]
    assert [(stage["name"], stage["kept"]) for stage in exported] == [("export: torchscript, from the trace", True)]
    assert exported[0]["max_abs"] > 1e-11


def test_builds_with_and_without_the_cache_have_the_same_bytes(audio, tmp_path):
    packager.build(audio, tmp_path / "out")
    document = yaml.safe_load(audio.read_text())
    for section in ({"description": "Another"}, {"optimize": {"level": "none"}}, {"torchscript": {"method": "none"}}):
        audio.write_text(yaml.safe_dump({**document, **section}, sort_keys=False))
        rebuilt = packager.build(audio, tmp_path / "out")
        assert not rebuilt.cached and "reference" in rebuilt.recalled
        assert rebuilt.fingerprint == packager.build(audio, tmp_path / "alone", cache="off").fingerprint


def test_an_explicit_tolerance_stands(tmp_path):
    explicit = {"tolerance": {"atol": 1e-9, "rtol": 1e-9}}
    with pytest.raises(ParityFailed):
        packager.build(project(tmp_path / "audio", NORMALIZED, inputs=AUDIO, parity=explicit), tmp_path / "out")
