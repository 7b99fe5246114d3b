"""onnxruntime's elementwise functions in the place of torch's."""

import numpy as np
import pytest
import torch
from projects import LINEAR

from packager.parity import runtime_functions
from packager.parity.runtime_functions import measure_function_error, run_with_runtime_functions

EPSILON = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("operator", sorted({*runtime_functions._EXACT, *runtime_functions._NORMALIZATIONS}))
def test_every_function_of_onnxruntime_is_as_accurate_as_float32_allows(operator):
    assert 0.0 < measure_function_error(operator) < 4 * EPSILON


EXPRESSIONS = {
    "y.sigmoid()": {"Sigmoid"},
    "y.clone().sigmoid_()": {"Sigmoid"},
    "y.tanh()": {"Tanh"},
    "torch.erf(y)": {"Erf"},
    "y.exp()": {"Exp"},
    "y.abs().add(1).log()": {"Log"},
    "y.sin() + y.cos()": {"Sin", "Cos"},
    "F.silu(y)": {"Sigmoid"},
    "F.silu(y, inplace=True)": {"Sigmoid"},
    "F.gelu(y)": {"Erf"},
    "F.gelu(y, approximate='tanh')": {"Tanh"},
    "F.softplus(y, beta=2, threshold=5)": {"Softplus"},
    "F.mish(y)": {"Softplus", "Tanh"},
    "F.glu(torch.cat([y, y], 1))": {"Sigmoid"},
    "F.layer_norm(y, (3,))": {"LayerNormalization"},
    "F.layer_norm(y, (3,), self.layer.bias, self.layer.bias, 1e-3)": {"LayerNormalization"},
    "F.group_norm(y[:, :2].reshape(-1, 2, 1) + y[:, None], 2)": {"InstanceNormalization"},
    "F.instance_norm(y[:, :, None] * x[:, None])": {"InstanceNormalization"},
    "F.instance_norm(y[:, :, None] * x[:, None], weight=self.layer.bias, bias=self.layer.bias)": {
        "InstanceNormalization"
    },
    "F.relu(y)": set(),
    "y.double().sigmoid()": set(),
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_function_is_run_by_onnxruntime_and_means_the_same(opened, expression):
    text = LINEAR.replace("return self.layer(x)", f"y = self.layer(x)\n        return {expression}")
    loaded, model, grid = opened(text.replace("import torch\n", "import torch\nimport torch.nn.functional as F\n"))
    case = grid.cases[0]
    outputs, used = run_with_runtime_functions(loaded, model, case)
    assert used == EXPRESSIONS[expression]
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(case.inputs["x"])).numpy()
    np.testing.assert_allclose(outputs["output_0"], expected, rtol=1e-5, atol=1e-6)


def test_the_error_of_the_runtime_s_kernel_reaches_the_outputs(opened):
    """In the tail of a sigmoid, torch is right to 1e-7 of the value, and onnxruntime to 1e-7."""
    loaded, model, grid = opened(LINEAR.replace("self.layer(x)", "torch.sigmoid(self.layer(x) - 14)"))
    outputs, _ = run_with_runtime_functions(loaded, model, grid.cases[0])
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(grid.cases[0].inputs["x"])).numpy()
    relative = np.abs(outputs["output_0"] - expected) / expected
    assert relative.max() > 10 * EPSILON
    assert np.abs(outputs["output_0"] - expected).max() < 2 * EPSILON


def test_a_kernel_that_is_wrong_is_not_taken_for_noise(opened, monkeypatch):
    def run_wrong(operator, attributes, values):
        return np.asarray(1 / (1 + np.exp(-values.astype(np.float64))) + 1e-6, np.float32)

    monkeypatch.setattr(runtime_functions, "_run_operator", run_wrong)
    measure_function_error.cache_clear()
    try:
        loaded, model, grid = opened(LINEAR.replace("self.layer(x)", "torch.sigmoid(self.layer(x))"))
        outputs, used = run_with_runtime_functions(loaded, model, grid.cases[0])
    finally:
        measure_function_error.cache_clear()
    assert used == frozenset()
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(grid.cases[0].inputs["x"])).numpy()
    np.testing.assert_array_equal(outputs["output_0"], expected)
