"""A size that forward() divides a multiple of by the same number stays dynamic in torch.export."""

import numpy as np
import onnxruntime
import pytest
import sympy
from exporting import export
from projects import project
from torch.utils._sympy import functions

from packager.export.size_quotients import simplify_size_quotients

# Windows of 4 steps, put together again as Swin's window_reverse does it.
WINDOWS = """
import math

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        windows = self.layer(x.reshape(x.shape[0] * 4, 4, 3))
        batch = BATCH
        return windows.view(batch, 4, 4, -1).transpose(1, 2).reshape(batch, 48)
"""
BATCHES = ["int(windows.shape[0] / (8 * 8 / 4 / 4))", "math.floor(windows.shape[0] / 4)"]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_batch_that_is_computed_from_the_number_of_its_windows_stays_dynamic(tmp_path, batch):
    inputs = {"x": {"dtype": "float32", "shape": ["batch", 16, 3]}}
    graph, grid, cases, _ = export(
        "torch-export", project(tmp_path, WINDOWS.replace("BATCH", batch), inputs=inputs), tmp_path
    )
    session = onnxruntime.InferenceSession(graph)
    assert len({case.sizes["batch"] for case in grid.cases}) > 2
    for case in grid.cases:
        (actual,) = session.run(None, dict(case.inputs))
        np.testing.assert_allclose(actual, cases[case.name]["output_0"], rtol=1e-4, atol=1e-5)


SIZE, FLOAT = sympy.Symbol("size", integer=True, positive=True), sympy.Symbol("x", real=True)


def test_only_a_quotient_that_is_whole_at_every_size_is_simplified():
    def divide(number, divisor):
        return functions.FloatTrueDiv(functions.ToFloat(number), sympy.Float(divisor))

    with simplify_size_quotients():
        for rounding in (functions.TruncToInt, functions.FloorToInt, functions.CeilToInt):
            assert rounding(divide(64 * SIZE, 64)) == SIZE
            assert rounding(functions.IntTrueDiv(6 * SIZE + 4, sympy.Integer(2))) == 3 * SIZE + 2
            for number in (divide(64 * SIZE, 128), divide(SIZE + 1, 2), divide(3 * SIZE, 1.5), FLOAT / 2):
                assert rounding(number).func is rounding
            assert rounding(functions.FloatTrueDiv(64 * FLOAT, sympy.Float(64))).func is rounding
    other = sympy.Symbol("other", integer=True)
    assert functions.TruncToInt(divide(64 * other, 64)) != other
    assert functions.FloorToInt(sympy.Float(2.5)) == 2
