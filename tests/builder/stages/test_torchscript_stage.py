"""Which form of the TorchScript fallback ships."""

import json

import pytest
from projects import project

import packager
from packager.builder.stages import torchscript_stage


@pytest.mark.parametrize("is_large", [False, True])
def test_the_weights_of_a_large_model_are_not_packed_a_second_time(tmp_path, monkeypatch, is_large):
    if is_large:
        monkeypatch.setattr(torchscript_stage, "_MAX_OPTIMIZED_BYTES", 4 * (4 * 3 + 3) - 1)
    bundle = packager.build(project(tmp_path), tmp_path / "out").bundle
    artifact = json.loads((bundle / "config.json").read_text())["artifacts"]["torchscript"]
    assert artifact["optimize_for_inference"] == (not is_large)
    stages = json.loads((bundle / "evidence/parity.json").read_text())["stages"]
    forms = [stage["name"] for stage in stages if "freeze" in stage["name"]]
    assert [("optimize for inference" in form) for form in forms] == [not is_large]
    assert packager.verify(bundle).ok
