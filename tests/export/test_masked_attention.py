"""Attention gives zeros where a mask hides every key, in torch.export's graphs too, and every dim stays dynamic."""

import runpy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exporting import export
from projects import project

from packager.export.masked_attention import zero_hidden_rows

ATTENTION = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, shown):
        query, key = self.layer(x)[:, None], x[:, None]
        shown = shown.bool()[:, None]
        mask = MASK
        for _ in range(2):
            query = nn.functional.scaled_dot_product_attention(query, key, key, mask)
        return RESULT
"""
MASKS = {
    "booleans": "shown[..., None] & shown[:, :, None]",
    "booleans of keys alone": "shown[:, :, None]",
    "floats": "torch.where(shown[:, :, None], x[:, None, :, :1], float('-inf'))",
}
ENCODER = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x, shown):
        return self.encoder(x, src_key_padding_mask=shown == 0)
"""
INPUTS = {
    "x": {"dtype": "float32", "shape": ["batch", "length", 4]},
    "shown": {"dtype": "int64", "shape": ["batch", "length"], "range": [0, 2]},
}
SHOWN = (
    [[0, 0, 0], [1, 1, 0], [1, 1, 1]],
    [[0, 0]],
    [[1, 1, 1, 1, 1]] * 7,
    [[0, 1, 1]] * 2,
)


def _check(folder, source, exporter="torch-export"):
    """Hold an exported graph against the module, at sizes of which one at most is that of the example."""
    graph, *_ = export(exporter, project(folder, source, inputs=INPUTS), folder)
    session = onnxruntime.InferenceSession(graph)
    torch.manual_seed(0)
    module = runpy.run_path(str(folder / "model.py"))["Net"]().eval()
    for rows in SHOWN:
        shown = torch.tensor(rows)
        x = torch.randn(*shown.shape, 4)
        expected = module(x, shown).detach().numpy()
        (actual,) = session.run(None, {"x": x.numpy(), "shown": shown.numpy()})
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
        assert np.isfinite(expected).all()
    return graph


@pytest.mark.parametrize("exporter", ["torch-export", "torchscript"])
@pytest.mark.parametrize("result", ["query[:, 0]", "query"])
@pytest.mark.parametrize("kind", MASKS)
def test_a_row_whose_keys_are_all_hidden_is_zero(tmp_path, kind, result, exporter):
    _check(tmp_path, ATTENTION.replace("MASK", MASKS[kind]).replace("RESULT", result), exporter)


@pytest.mark.parametrize("limit", ["float('-inf')", "torch.finfo(x.dtype).min"])
def test_a_trace_looks_for_hidden_rows_only_where_its_mask_is_made_with_infinity(tmp_path, limit):
    mask = MASKS["floats"].replace("float('-inf')", limit)
    source = ATTENTION.replace("MASK", mask).replace("RESULT", "query")
    graph, *_ = export("torchscript", project(tmp_path, source, inputs=INPUTS), tmp_path)
    assert ("ReduceMax" in {node.op_type for node in onnx.load(graph).graph.node}) == ("inf')" in limit)


def test_an_encoder_attends_to_nothing_in_a_row_of_padding_and_keeps_its_dynamic_batch(tmp_path):
    _check(tmp_path, ENCODER)


def test_layers_that_share_a_mask_look_once_for_hidden_rows():
    class Net(torch.nn.Module):
        def forward(self, x, mask):
            attend = torch.nn.functional.scaled_dot_product_attention
            return attend(attend(x, x, x, mask), x, x, attn_mask=mask)

    example = torch.ones(1, 2, 3, 4), torch.ones(3, 3, dtype=torch.bool)
    program = torch.export.export(Net(), example)
    before = str(program.graph)
    rewritten = zero_hidden_rows(program)
    targets = [str(node.target) for node in rewritten.graph.nodes]
    assert targets.count("aten.any.dim") == 1
    assert targets.count("aten.where.ScalarOther") == 2
    assert str(program.graph) == before
    x, mask = torch.randn(1, 2, 3, 4), torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 1]]).bool()
    torch.testing.assert_close(rewritten.module()(x, mask), Net()(x, mask))


def test_a_program_that_attends_without_a_mask_stays_as_it_is():
    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    program = torch.export.export(Net(), (torch.ones(1, 2, 3, 4),))
    assert zero_hidden_rows(program) is program
