"""Fused operators compute what the module computes."""

import json

import onnx
import pytest
from projects import project

import packager
from packager.parity.numerics.tolerances import NOISE_MULTIPLE

GELU = """
from torch import nn
import torch.nn.functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 16)
        self.outer = nn.Linear(16, 8)

    def forward(self, x):
        return self.outer(F.gelu(self.inner(x), approximate={approximate!r}))
"""


@pytest.mark.parametrize(("approximate", "fused"), [("none", "BiasGelu"), ("tanh", "FastGelu")])
def test_a_gelu_and_its_bias_become_the_gelu_that_the_module_has(tmp_path, approximate, fused):
    """The two differ by 4e-4 at most, hundreds of noise floors: the graph that ships is within a few."""
    inputs = {"x": {"dtype": "float32", "shape": ["batch", "length", 8]}}
    path = project(tmp_path / "project", GELU.format(approximate=approximate), inputs=inputs)
    built = packager.build(path, tmp_path / "out")
    operators = [node.op_type for node in onnx.load(built.bundle / "model.onnx").graph.node]
    assert {"Gelu", "BiasGelu", "FastGelu"} & {*operators} == {fused}
    record = json.loads((built.bundle / "evidence/parity.json").read_text())
    stages = {stage["name"]: stage for stage in record["stages"]}
    assert (stages["fuse"]["kept"], stages["fuse"]["verdict"]) == (True, "pass")
    errors = record["backends"]["onnx"]["outputs"]["output_0"]
    floors = NOISE_MULTIPLE * max(errors["of_limit"], errors["of_limit_float64"])
    assert 0 < floors < 4
