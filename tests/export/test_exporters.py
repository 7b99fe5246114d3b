"""What keeps torch from tracing a module without being part of what the module computes."""

import contextlib
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from exporting import export
from onnxscript.rewriter import _matcher
from projects import project

from packager.export import exporters
from packager.export import onnx as onnx_exporters

# Without the flag, every row would be an average over all rows instead of those up to its own.
SOURCE = """
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 12)

    def forward(self, x):
        q, k, v = self.layer(x).unsqueeze(1).chunk(3, -1)
        longer = x.shape[1] > 1
        return attend(q, k, v, is_causal=longer) + F.scaled_dot_product_attention(q, k, v, None, 0.0, longer)
"""
INPUTS = {"x": {"dtype": "float32", "shape": ["batch", "length", 4]}}


@pytest.mark.parametrize("exporter", ["torchscript", "module", "torch-export"])
def test_attention_whose_is_causal_is_computed_from_a_size_is_exported(tmp_path, exporter):
    graph, grid, cases, _ = export(exporter, project(tmp_path, SOURCE, inputs=INPUTS), tmp_path)
    session = onnxruntime.InferenceSession(graph)
    assert len({case.inputs["x"].shape[1] for case in grid.cases}) > 2
    for case in grid.cases:
        (actual,) = session.run(None, {"x": case.inputs["x"]})
        np.testing.assert_allclose(actual, cases[case.name]["output_0"], rtol=1e-4, atol=1e-5)


def test_attention_is_replaced_only_for_the_second_attempt_and_wherever_it_was_imported():
    attention = torch.nn.functional.scaled_dot_product_attention
    sys.modules[__name__].attend = attention
    query, attempts = torch.ones(1, 2, 3), []

    def trace():
        attempts.append((attend, torch.nn.functional.scaled_dot_product_attention))  # noqa: F821 (set above)
        return attempts[-1][0](query, query, query, is_causal=torch.tensor(True))

    exporters.retry_with_plain_is_causal(trace)
    assert attempts[0] == (attention, attention)
    assert attempts[1][0] is attempts[1][1] is not attention
    assert attend is torch.nn.functional.scaled_dot_product_attention is attention  # noqa: F821 (set above)


def test_other_type_errors_are_raised_at_once():
    attempts = []

    def trace():
        attempts.append(1)
        raise TypeError("query must be a tensor")

    with pytest.raises(TypeError, match="query"):
        exporters.retry_with_plain_is_causal(trace)
    assert attempts == [1]


ASKS = """
import torch
from torch import nn


class Net(nn.Module):
    def forward(self, x):
        if torch.compiler.is_exporting():
            return EXPORTED
        return torch.fft.rfft(x, dim=1).abs()
"""


@pytest.mark.parametrize(("exported", "expected"), [("x.view(-1, 5)", "abs"), ("x + 7", "sum")])
def test_a_module_that_asks_whether_it_is_exported_gets_no_for_an_answer_only_if_it_fails_otherwise(
    tmp_path, exported, expected
):
    source = ASKS.replace("EXPORTED", exported)
    graph, grid, _, _ = export("torch-export", project(tmp_path, source), tmp_path)
    x = grid.example_case.inputs["x"]
    (actual,) = onnxruntime.InferenceSession(graph).run(None, {"x": x})
    wanted = np.abs(np.fft.rfft(x, axis=1)) if expected == "abs" else x + 7
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_a_module_that_does_not_ask_is_not_exported_again_and_torch_gets_the_truth():
    is_exporting, attempts = torch.compiler.is_exporting, []

    def fail(ask):
        attempts.append(ask() if ask else None)
        raise ValueError("broken")

    for ask, expected in (
        (None, [None]),
        (
            lambda: eval("is_exporting()", {"__name__": "torch.nn", "is_exporting": torch.compiler.is_exporting}),
            [False],
        ),
        (lambda: torch.compiler.is_exporting(), [False, False]),
    ):
        attempts.clear()
        with pytest.raises(ValueError, match="broken"):
            exporters.retry_without_is_exporting(lambda ask=ask: fail(ask))
        assert attempts == expected
    assert torch.compiler.is_exporting is is_exporting


SLICED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 8)

    def forward(self, x):
        y = torch.relu(self.layer(x))
        return torch.cat((y[:, :4] * 2, y[:, 4:] + 1, y[:, :3]), 1)
"""


def test_quick_rewriting_gives_the_same_graph_with_fewer_attempts(tmp_path, monkeypatch):
    matcher, attempts = _matcher.SimplePatternMatcher, []
    multi_match, match = matcher._multi_match, matcher.match

    def count(self, *arguments, **options):
        attempts.append(self)
        return multi_match(self, *arguments, **options)

    monkeypatch.setattr(matcher, "_multi_match", count)
    graphs, counts = [], []
    for name in ("quick", "plain"):
        if name == "plain":
            monkeypatch.setattr(onnx_exporters, "speed_up_rewriting", contextlib.nullcontext)
        (tmp_path / name).mkdir()
        graph, _, _, _ = export("torch-export", project(tmp_path / name, SLICED), tmp_path / name)
        graphs.append(graph.read_bytes().replace(str(tmp_path / name).encode(), b"folder"))
        counts.append(len(attempts))
        attempts.clear()
    assert graphs[0] == graphs[1]
    assert 0 < counts[0] < counts[1]
    assert matcher.match is match
