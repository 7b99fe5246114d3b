"""Operators that the TorchScript exporter lacks or gets wrong are converted by packager, at every size and value."""

import numpy as np
import onnxruntime
import pytest
from exporting import export
from projects import project

from packager.export.exporters import ExporterFailed

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = LAYER

    def forward(self, INPUTS):
BODY
"""


def _write(folder, layer, body, inputs, **sections):
    lines = "\n".join(f"        {line}" for line in body.strip().splitlines())
    source = HEAD.replace("LAYER", layer).replace("INPUTS", ", ".join(inputs)).replace("BODY", lines)
    return project(folder, source, inputs=inputs, **sections)


def _check(folder, layer, body, inputs, *, exporter="torchscript", **sections):
    graph, grid, expected, _ = export(exporter, _write(folder, layer, body, inputs, **sections), folder)
    session = onnxruntime.InferenceSession(graph)
    names = [value.name for value in session.get_inputs()]
    for case in grid.cases:
        results = session.run(None, {name: case.inputs[name] for name in names})
        for actual, array in zip(results, expected[case.name].values(), strict=True):
            np.testing.assert_allclose(actual, array, rtol=1e-4, atol=1e-5)


SEQUENCES = {
    "x": {"dtype": "float32", "shape": ["batch", "time", 4]},
    "lengths": {"dtype": "int64", "shape": ["batch"], "range": [1, 6]},
}
PACK = "packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)\n"
STATES = {
    "the last state alone": "return self.layer(packed)[1]",
    "a batch that is padded again": "return pad_packed_sequence(self.layer(packed)[0], batch_first=True)",
    "time first, and a different padding": "return pad_packed_sequence(self.layer(packed)[0], padding_value=-2.0)[0]",
    "the full length": "return pad_packed_sequence(self.layer(packed)[0], True, total_length=x.shape[1])[0]",
    "elements changed in between": (
        "output, order = self.layer(packed)[0], packed.sorted_indices\n"
        "output = output._replace(data=F.gelu(output.data) + 1)\n"
        "return pad_packed_sequence(output, batch_first=True)[0]"
    ),
}


@pytest.mark.parametrize("use", STATES)
@pytest.mark.parametrize("layer", ["nn.GRU(4, 3, num_layers=2)", "nn.RNN(4, 3, bidirectional=True)"])
def test_a_layer_over_packed_sequences_is_exported(tmp_path, layer, use):
    dims = {"time": {"min": 5, "max": 9}}  # torch refuses lengths beyond the batch
    _check(tmp_path, layer, PACK + STATES[use], SEQUENCES, dims=dims)


def test_an_lstm_over_packed_sequences_takes_and_returns_states(tmp_path):
    body = PACK + "_, (hidden, cell) = self.layer(packed, (x[None, :, 0, :3], x[None, :, 1, 1:]))\nreturn hidden, cell"
    _check(tmp_path, "nn.LSTM(4, 3)", body, SEQUENCES, dims={"time": {"min": 5, "max": 9}})


EDGES = {
    "x": {"dtype": "float32", "shape": ["nodes", 3]},
    "edges": {"dtype": "int64", "shape": [2, "edges"], "range": [0, 4]},
}
SUMS = {
    "index_add": "torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])",
    "index_add of a column, doubled": "x.T.index_add(-1, edges[1], x[edges[0]].T, alpha=2)",
    "index_add of a vector": "torch.zeros(x.shape[0]).index_add_(0, edges[1], x[edges[0], 0])",
    "index_put": "torch.zeros_like(x).index_put((edges[1],), x[edges[0]], accumulate=True)",
    **{
        f"scatter_reduce, {reduce}, include_self={include_self}": (
            "x.scatter_reduce(0, edges[1][:, None].expand(-1, 3), x[edges[0]],"
            f" '{reduce}', include_self={include_self})"
        )
        for reduce in ("sum", "mean", "prod", "amin", "amax")
        for include_self in (True, False)
    },
}


@pytest.mark.parametrize("kind", SUMS)
def test_whatever_goes_to_the_same_index_is_combined(tmp_path, kind):
    _check(tmp_path, "None", f"return {SUMS[kind]}", EDGES, dims={"nodes": {"min": 4}})


IMAGES = {"x": {"dtype": "float32", "shape": ["batch", 2, "height", "width"]}}
POOLS = {
    "average": "F.adaptive_avg_pool2d(x, (3, 2))",
    "maximum": "F.adaptive_max_pool2d(x, (2, 3))",
    "one axis": "F.adaptive_avg_pool1d(x.flatten(2), 5)",
    "three axes": "F.adaptive_max_pool3d(x[:, None], (2, 3, 2))",
    "a size that is computed": "F.adaptive_avg_pool2d(x, (x.shape[2] // 2 + 1, 2))",
    "an area": "F.interpolate(x, scale_factor=0.5, mode='area', recompute_scale_factor=True)",
}


@pytest.mark.parametrize("kind", POOLS)
def test_a_dynamic_size_is_pooled_to_any_size(tmp_path, kind):
    dims = {name: {"min": 2, "max": 11} for name in ("height", "width")}
    _check(tmp_path, "None", f"return {POOLS[kind]}", IMAGES, dims=dims)


def test_the_indices_of_maxima_of_a_dynamic_size_are_refused(tmp_path):
    body = "return F.adaptive_max_pool2d(x, (2, 3), return_indices=True)[1]"
    with pytest.raises(ExporterFailed, match="input size not accessible"):
        _check(tmp_path, "None", body, IMAGES)


def test_booleans_are_combined_in_place(tmp_path):
    body = "mask = x > 0\nmask &= x < 1\nmask |= x < -1\nmask ^= x < -2\nreturn mask.float()"
    _check(tmp_path, "None", body, {"x": SEQUENCES["x"]})


CELLS = {"GRUCell": "(4, 3)", "RNNCell": "(4, 3, bias=False)", "RNNCell ": "(4, 3, nonlinearity='relu')"}


@pytest.mark.parametrize("cell", CELLS)
def test_a_loop_over_time_that_calls_a_cell_is_exported_from_its_script(tmp_path, cell):
    body = """
state = torch.zeros(x.shape[0], 3)
states = []
for step in range(x.shape[1]):
    state = self.layer(x[:, step], state)
    states.append(state)
return torch.stack(states, 1)
"""
    layer = f"nn.{cell.strip()}{CELLS[cell]}"
    _check(tmp_path, layer, body, {"x": SEQUENCES["x"]}, exporter="script")


def test_a_branch_of_a_script_on_what_an_export_knows_is_decided(tmp_path):
    body = """
if x.dim() != 3 or x.is_nested or torch.is_autocast_enabled():
    return x.flatten(3)
for _ in range(x.shape[1]):
    x = x + 1
return x
"""
    _check(tmp_path, "None", body, {"x": SEQUENCES["x"]}, exporter="script")
