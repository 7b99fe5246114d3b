"""The hint of an error that the sizes or values of a test case explain."""

import pytest
from projects import LINEAR, project

from packager.builder.vet import vet
from packager.errors import ForwardFailed

SEQUENCE = {"ids": {"dtype": "int64", "shape": ["batch", "time"], "range": [0, 10]}}
SIGNAL = {"x": {"dtype": "float32", "shape": ["batch", 4, "time"]}}
MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.positions = nn.Embedding(16, 4)
        self.norm = {norm}

    def forward(self, {name}):
        return {expression}
"""


def hint_of(tmp_path, expression, inputs, norm="None", **sections):
    text = MODULE.format(norm=norm, expression=expression, name=next(iter(inputs)))
    with pytest.raises(ForwardFailed) as caught:
        vet(project(tmp_path, text, inputs=inputs, **sections))
    return caught.value.hint


def test_statistics_of_a_batch_of_one_need_a_larger_minimum(tmp_path, golden):
    inputs = {"x": {"dtype": "float32", "shape": ["batch", 4]}}
    golden(
        hint_of(tmp_path, "self.norm(x)", inputs, "nn.BatchNorm1d(4, track_running_stats=False)"), "dims.batch.min: 2"
    )


def test_statistics_of_a_channel_with_one_element_need_a_larger_minimum(tmp_path, golden):
    golden(hint_of(tmp_path, "self.norm(x)", SIGNAL, "nn.InstanceNorm1d(4)"), "dims.time.min: 2")


def test_statistics_of_one_value_are_explained_where_no_dim_can_grow(tmp_path, golden):
    inputs = {"x": {"dtype": "float32", "shape": [1, 4]}}
    golden(hint_of(tmp_path, "self.norm(x)", inputs, "nn.BatchNorm1d(4, track_running_stats=False)"))


@pytest.mark.parametrize(
    ("expression", "facts"),
    [
        ("self.embed(ids) + self.positions(torch.arange(ids.shape[1]))", ("dims.time.max",)),
        ("self.embed(ids) + self.positions.weight[torch.arange(ids.shape[1])]", ("dims.time.max: 16",)),
        ("self.embed(ids) + self.positions.weight[: ids.shape[1]]", ("dims.time.max: 16",)),
    ],
    ids=["embedding", "indexing", "slice"],
)
def test_a_size_beyond_a_table_of_positions_needs_a_maximum(tmp_path, expression, facts, golden):
    golden(hint_of(tmp_path, expression, SEQUENCE), *facts)


def test_an_id_beyond_a_table_needs_a_smaller_range(tmp_path, golden):
    inputs = {"ids": {"dtype": "int64", "shape": [3], "range": [0, 1000]}}
    golden(hint_of(tmp_path, "self.embed(ids)", inputs), "ids")


@pytest.mark.parametrize("expression", ["self.layer(x)", "x + torch.zeros(x.shape[0])", "x[9]"])
def test_an_error_that_no_larger_size_explains_has_the_general_hint(tmp_path, expression):
    inputs = {"x": {"dtype": "float32", "shape": ["batch", 5]}}
    with pytest.raises(ForwardFailed, match="must be a multiple"):
        vet(project(tmp_path, LINEAR.replace("self.layer(x)", expression), inputs=inputs))
