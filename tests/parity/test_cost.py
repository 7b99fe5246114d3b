"""What a forward pass costs, in operations."""

import numpy as np
import pytest
import torch
from projects import LINEAR, project

from packager.model import loader
from packager.parity.cases import sample_grid
from packager.parity.cost import ForwardCost, count_forward_cost
from packager.parity.forward import run_case
from packager.project.manifest import load_manifest

CALL, ELEMENT, OUTPUT = 1 << 19, 1 << 5, 1 << 10


def module_text(layer, expression="self.layer(x)"):
    return LINEAR.replace("nn.Linear(4, 3)", layer).replace("self.layer(x)", expression)


def count(tmp_path, text, shape, size=2):
    """Return the cost of the module, counted on the case of this batch size, and the case."""
    loaded = load_manifest(project(tmp_path, text, inputs={"x": {"dtype": "float32", "shape": ["batch", *shape]}}))
    with loader.open_model_loader(loaded) as load:
        case = next(case for case in sample_grid.build_grid(loaded).cases if case.sizes["batch"] == size)
        return count_forward_cost(loaded, load(), case), case


def test_a_product_counts_its_flops_its_elements_and_its_call(tmp_path):
    cost, case = count(tmp_path, module_text("nn.Linear(4, 3)"), [4])
    assert cost.estimate(case) == CALL + 2 * 2 * 4 * 3 + (ELEMENT + OUTPUT) * 2 * 3


def test_a_convolution_counts_its_flops(tmp_path):
    cost, case = count(tmp_path, module_text("nn.Conv2d(3, 8, 3, bias=False)"), [3, 10, 10])
    assert cost.estimate(case) - cost.fixed == 2 * 2 * 8 * 64 * 27 + (ELEMENT + OUTPUT) * 2 * 8 * 64


@pytest.mark.parametrize(
    ("layer", "expression"),
    [
        ("nn.LSTM(8, 16, batch_first=True)", "self.layer(x)[0]"),
        ("nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)", "self.layer(x)"),
    ],
    ids=["lstm", "transformer"],
)
def test_a_fused_layer_counts_the_products_with_its_weights(tmp_path, layer, expression):
    cost, case = count(tmp_path, module_text(layer, expression), [50, 8])
    weights = 4 * 16 * (8 + 16) if "LSTM" in layer else 4 * 8 * 8 + 2 * 8 * 32
    products = 2 * 2 * 50 * weights
    outputs = 2 * 50 * (16 if "LSTM" in layer else 8)
    assert products <= cost.estimate(case) - cost.fixed - OUTPUT * outputs <= 4 * products


def test_the_cost_grows_with_the_elements_and_the_calls_stay():
    case = sample_grid.InputCase("000", {}, ("random",), {"x": torch.zeros(3, 4).numpy()})
    assert ForwardCost(100, 2.5).estimate(case) == 100 + 2.5 * 12


def test_the_count_is_the_same_every_time_and_at_every_size(tmp_path):
    layer = "nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 3))"
    costs = [count(tmp_path, module_text(layer), [4], size)[0] for size in (2, 2, 3)]
    assert costs[0] == costs[1] == costs[2]


def test_views_cost_nothing(tmp_path):
    cost, _ = count(tmp_path, module_text("nn.Linear(4, 3)"), [4])
    viewed, _ = count(
        tmp_path, module_text("nn.Linear(4, 3)", "self.layer(x.reshape(-1, 2, 2).flatten(1))[:, None][:, 0]"), [4]
    )
    assert viewed == cost


def test_a_module_that_branches_with_torch_cond_runs_on_after_its_operators_were_counted(tmp_path):
    """While a dispatch mode is active, torch.compile marks code of torch.cond as code to skip, for ever."""
    branch = "torch.cond(self.layer(x).sum() > 0, lambda y: y * 2, lambda y: y - 1, (self.layer(x),))"
    loaded = load_manifest(
        project(
            tmp_path,
            module_text("nn.Linear(4, 3)", branch),
            inputs={"x": {"dtype": "float32", "shape": ["batch", 4]}},
        )
    )
    with loader.open_model_loader(loaded) as load:
        model, case = load(), sample_grid.build_grid(loaded).example_case
        before = run_case(loaded, model, case)
        assert count_forward_cost(loaded, model, case).fixed >= 2 * CALL
        np.testing.assert_array_equal(run_case(loaded, model, case)["output_0"], before["output_0"])
