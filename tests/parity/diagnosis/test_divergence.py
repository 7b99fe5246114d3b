"""Where two runs part: the first operation that computes something else from the same values."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import architectures
import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from messages import carries, mentions
from onnx import numpy_helper
from projects import project, python

import packager
from packager.errors import ParityFailed, render_error
from packager.export import onnx as exporters
from packager.export import torchscript
from packager.export.graph import io
from packager.model import loader
from packager.model.inputs import bind_inputs
from packager.parity import reference
from packager.parity.cases import sample_grid
from packager.parity.diagnosis import divergence, localize, onnx_activations, torch_activations
from packager.parity.diagnosis.activations import INPUT_OPERATOR, Activation, Activations, ActivationsUnavailable
from packager.parity.diagnosis.onnx_activations import GraphModel
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.verdict import ReferenceCase
from packager.project import manifest

# -- flows of plain arrays ------------------------------------------------------------------

OPERATIONS = {
    "add": lambda one, other: one + other,
    "mul": lambda one, other: one * other * 0.7,
    "sin": lambda one, other: np.sin(one * 3.1) + 0.1 * other,
    "mix": lambda one, other: np.tanh(one @ np.linspace(-1, 1, 36).reshape(6, 6)) - other,
}


def evaluated(start, nodes, wrong=None, instead=None):
    """The flow of nodes (operation, reads), each on all before it; `wrong` is the place of one that is off."""
    arrays, values = [start], [Activation("x", INPUT_OPERATOR, (), start, relative_tolerance=1e-5)]
    for place, (operation, reads) in enumerate(nodes, start=1):
        array = OPERATIONS[operation](*(arrays[one] for one in reads)).astype(np.float32)
        if place == wrong:
            array = (array * np.float32(1.01) + np.float32(0.003)).astype(np.float32)
        array = (instead or {}).get(place, array)
        arrays.append(array)
        values.append(Activation(f"v{place}", operation, reads, array, relative_tolerance=1e-5))
    return Activations(tuple(values), {"y": len(nodes)})


@st.composite
def graphs(draw):
    size = draw(st.integers(2, 12))
    nodes = []
    for place in range(1, size + 1):
        reads = (place - 1, draw(st.integers(0, place - 1)))  # each is on the way to the output
        nodes.append((draw(st.sampled_from(sorted(OPERATIONS))), reads))
    return nodes, draw(st.integers(1, size)), draw(st.integers(0, 1000))


@given(graphs(), st.sampled_from(divergence.MATCH_RULES))
def test_the_node_that_is_off_is_the_one_that_is_found(graph, rule):
    nodes, wrong, seed = graph
    start = np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32)
    good, bad = evaluated(start, nodes), evaluated(start, nodes, wrong)
    output = divergence.compare_activation(good.values[-1], bad.values[-1].array)
    assume(output is not None and output.error_over_limit > 10)  # else it does not show

    def substitute(values, readers, wanted):
        assume(not readers)
        again = evaluated(start, nodes, wrong, values)
        return {one: again.values[one].array for one in wanted}

    parting = divergence.find_divergence(good, bad, "y", substitute, rule)
    assert parting.suspect_index == wrong or wrong in parting.path
    if rule == "unlike":
        assert (parting.suspect_index, parting.path, parting.expected_index) == (wrong, (wrong,), wrong)


def test_an_output_that_the_reference_does_not_compute_has_no_place():
    flow = evaluated(np.ones((4, 6), np.float32), [("sin", (0, 0))])
    assert divergence.find_divergence(replace(flow, outputs={}), flow, "y", lambda *_: {}) is None


def test_values_of_another_dtype_or_shape_are_at_no_distance():
    value = Activation("v", "add", (), np.ones(3, np.float32), relative_tolerance=1e-5)
    assert divergence.compare_activation(value, np.ones(3)) is None
    assert divergence.compare_activation(value, np.ones((3, 1), np.float32)) is None
    assert divergence.compare_activation(value, None) is None
    assert divergence.compare_activation(value, np.ones(3, np.float32)).within_tolerance


# -- exported graphs, broken by hand --------------------------------------------------------


def exported(architecture, folder):
    """A module with its raw graph and its expectations."""
    loaded = manifest.load_manifest(architectures.write(architecture, folder))
    with loader.open_model_loader(loaded) as opening:
        opened = opening()
        grid = sample_grid.build_grid(loaded)
        names = exporters.TensorNames(list(loaded.manifest.inputs), list(loaded.manifest.outputs))
        example = bind_inputs(loaded, list(grid.example_case.inputs.values()))
        program = torchscript.trace(opened.module, loaded.manifest.outputs, example, loaded.folder)
        raw = exporters.export_from_torchscript(loaded, program, names, example, folder / "raw.onnx")
        floor = reference.measure_noise(loaded, opened, grid, {})
        expected = reference.measure_reference(
            loaded, opened, grid, floor, probe=(), has_discrete_decisions=False
        ).reference_cases
    return loaded, opened.module, GraphModel(io.load_graph(raw), folder), expected


def broken(graph, name, break_it):
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    (node,) = [one for one in model.graph.node if one.name == name]
    break_it(model, node)
    return GraphModel(model, graph.folder)


def another_axis(model, node):
    (axis,) = node.attribute
    axis.i = 1


def a_scaled_weight(model, node):
    (tensor,) = [one for one in model.graph.initializer if one.name == node.input[1]]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))


def a_larger_epsilon(model, node):
    (epsilon,) = [one for one in node.attribute if one.name == "epsilon"]
    epsilon.f = 1e-3


BROKEN = {
    "an axis in bert": (architectures.BERT, "/model/1/attention/Softmax", another_axis),
    "a weight in resnet": (architectures.RESNET, "/model/layer2/0/conv2/Conv", a_scaled_weight),
    "an epsilon in gpt": (architectures.GPT, "/model/1/ln_2/LayerNormalization", a_larger_epsilon),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_node_that_was_broken_is_found_against_the_module_and_against_the_earlier_graph(tmp_path, case, golden):
    architecture, name, break_it = BROKEN[case]
    loaded, module, good, expected = exported(architecture, tmp_path / "p")
    with pytest.raises(ActivationsUnavailable) as caught:
        localize.find_smallest_failing_case(good, expected)
    golden(caught.value)
    bad = broken(good, name, break_it)
    case_found = localize.find_smallest_failing_case(bad, expected)
    inputs = case_found.reference_case.inputs
    tensors = dict(zip(inputs, bind_inputs(loaded, list(inputs.values())), strict=True))
    eager = torch_activations.ModuleCall(module, tensors, loaded.manifest.outputs, loaded.folder)
    flow, called = torch_activations.record_module(eager, 1 << 30)
    noise = torch_activations.measure_activation_noise(eager, flow, 1 << 30)
    assert called >= {"", *(one.module for one in flow.values if one.module)}
    found = localize.localize(
        flow.with_tolerances([16 * one if one is not None else case_found.relative_tolerance for one in noise]),
        onnx_activations.record_graph(bad, inputs),
        case_found,
    )
    assert [one.name for one in found.nodes] == [name]
    assert found.reproduces and found.input_error < 1 < found.metrics.error_over_limit
    end = found.subgraph.graph.output[0].name
    mended = onnx_activations.run_subgraph(
        good, onnx_activations.extract_subgraph(good, found.subgraph_inputs, end, found.expected), found.subgraph_inputs
    )
    np.testing.assert_allclose(mended, found.expected, rtol=1e-3, atol=1e-4)  # from the same values, unbroken
    target = flow.values[found.reference_index]
    assert target.module.rpartition(".")[2] in name
    assert target.source_line.startswith("model.py:")
    said = localize.describe_broken_pass(good, bad.model, expected)
    mentions(said, name)


def test_a_graph_that_is_right_node_by_node_has_no_node_at_fault(tmp_path, golden):
    _, _, graph, expected = exported(architectures.CONVNET, tmp_path / "p")
    wrong = localize.FailingCase(expected[0], "logits")
    flow = onnx_activations.record_graph(graph, expected[0].inputs)
    with pytest.raises(ActivationsUnavailable) as caught:
        localize.localize(flow.activations, flow, wrong)
    golden(caught.value)


def test_values_that_take_too_much_memory_are_not_looked_at(tmp_path, monkeypatch, golden):
    loaded, module, graph, expected = exported(architectures.CONVNET, tmp_path / "p")
    monkeypatch.setattr(onnx_activations, "MOST_BYTES", 100)
    with pytest.raises(ActivationsUnavailable) as caught:
        onnx_activations.record_graph(graph, expected[0].inputs)
    golden(caught.value, "0", size=re.search(r"\d+ MiB", str(caught.value)).group())
    inputs = dict(zip(expected[0].inputs, bind_inputs(loaded, list(expected[0].inputs.values())), strict=True))
    with pytest.raises(ActivationsUnavailable) as caught:
        torch_activations.record_module(torch_activations.ModuleCall(module, inputs, None, loaded.folder), 100)
    golden(caught.value)


def test_a_graph_that_does_not_run_is_said(tmp_path):
    node = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"], "fold")
    tensor = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)  # noqa: E731
    shape = numpy_helper.from_array(np.array([5]), "shape")
    graph = onnx.helper.make_graph([node], "g", [tensor("x")], [tensor("y")], [shape])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, ir_version=9, opset_imports=[opset])
    x = np.ones((2, 3), np.float32)
    expected = ReferenceCase("000", {"x": x}, {"y": x.reshape(6)}, {"y": ElementTolerance(0.0, 0.0)})
    with pytest.raises(ActivationsUnavailable, match=r"000.*onnxruntime.*Reshape"):
        localize.find_smallest_failing_case(GraphModel(model, tmp_path), [expected])
    with pytest.raises(ActivationsUnavailable, match="onnxruntime"):
        onnx_activations.record_graph(GraphModel(model, tmp_path), {"x": x})


# -- builds that fail -----------------------------------------------------------------------

BRANCH = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            {then}
        return self.right(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.block = Block()
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.block(self.first(x))))
"""

# An exporter's own extension point, with a formula that is nearly right.
SWISH = """
import torch
from torch import nn


@torch.library.custom_op("where_test::swish", mutates_args=())
def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


@swish.register_fake
def _(x):
    return torch.empty_like(x)


def symbolic(g, x):
    return g.op("Mul", x, g.op("HardSigmoid", x))


torch.onnx.register_custom_op_symbolic("where_test::swish", symbolic, 20)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(swish(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 16)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)
"""

# What people write around an exporter that could not do something once.
EXPORTING = """
import torch
from torch import nn
from torch.nn import functional as F


class Gelu(nn.Module):
    def forward(self, x):
        if torch.compiler.is_exporting():
            return x * torch.sigmoid(1.702 * x)
        return F.gelu(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.activation = Gelu()
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.activation(self.first(x)))
"""


def refused(tmp_path, text, exporter="torchscript"):
    """The error of a build, and what `show.py` prints elsewhere."""
    settings = {"export": {"exporter": exporter}, "torchscript": {"method": "none"}}
    path = project(tmp_path / "p", text, **settings)
    with pytest.raises(ParityFailed) as caught:
        packager.build(path, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()
    repro = tmp_path / "repro" / "net-1.0.0"
    assert sorted(os.listdir(repro)) == ["show.py", "subgraph.onnx", "values.npz"]
    assert os.listdir(repro.parent) == ["net-1.0.0"]
    done = subprocess.run([sys.executable, repro / "show.py"], capture_output=True, text=True, cwd="/", check=True)
    return caught.value, done.stdout


def nodes_of(tmp_path):
    return [node.op_type for node in onnx.load(tmp_path / "repro/net-1.0.0/subgraph.onnx").graph.node]


def lines_of(error):
    (problem,) = error.problems
    return problem.message.splitlines()


def test_a_frozen_branch_is_found_and_the_module_that_should_not_run_is_named(tmp_path, golden):
    error, shown = refused(tmp_path, BRANCH.format(then="return self.left(x)"))
    _, first, apart, branch, shows = lines_of(error)
    golden(first, "linear", "/model/block/left/Gemm", "(Gemm)", "block.right", "model.py:15")
    golden(branch, "block.left")
    golden(shows, f"{tmp_path}/repro/net-1.0.0/show.py")
    assert error.problems[0].where == "model.py:15"
    index, actual, expected = re.search(r"(\[.*\]) \D*?(-?\d\S*), \D*?(-?\d\S*),", apart).groups()
    golden(shown.splitlines()[1], index=index, expected=expected, actual=actual)
    assert nodes_of(tmp_path) == ["Gemm"]


def test_an_operation_that_a_frozen_branch_adds_is_found(tmp_path, golden):
    error, shown = refused(tmp_path, BRANCH.format(then="x = x * 2"))
    golden(lines_of(error)[1], "/model/block/Mul", "(Mul)", "linear", "block.right", "model.py:15")
    assert nodes_of(tmp_path) == ["Constant", "Mul"]
    mentions(shown, "PyTorch", "float32")


def test_an_operation_that_a_frozen_branch_leaves_out_is_found(tmp_path, golden):
    error, shown = refused(tmp_path, BRANCH.format(then="x = x * 2").replace("> 0", "< 0"))
    golden("\n".join(lines_of(error)[1:3]), "mul", "block", "model.py:14", "/model/block/right/Gemm", "(Gemm)")
    assert nodes_of(tmp_path) == ["Identity"]
    assert "onnxruntime" in shown.splitlines()[1]


def test_an_exporter_with_a_wrong_formula_is_found_in_its_first_use(tmp_path, golden):
    error, shown = refused(tmp_path, SWISH)
    golden(lines_of(error)[1], "/model/0/Mul", "(Mul)", "where_test::swish", "layers.0", "model.py:31")
    assert nodes_of(tmp_path) == ["HardSigmoid", "Mul"]
    mentions(shown, "PyTorch", "onnxruntime")


def test_a_formula_for_exporters_alone_is_found_in_the_graph_of_torch_export(tmp_path, golden):
    error, shown = refused(tmp_path, EXPORTING, "torch-export")
    golden(lines_of(error)[1], "node_mul_7", "(Mul)", "2", "gelu", "activation", "model.py:11")
    assert nodes_of(tmp_path) == ["Mul", "Sigmoid", "Mul"]
    mentions(shown, "PyTorch", "onnxruntime")


@pytest.mark.slow
def test_a_failure_elsewhere_replaces_the_folder_and_what_is_not_ours_is_left(tmp_path):
    refused(tmp_path, BRANCH.format(then="x = x * 2"))
    refused(tmp_path, BRANCH.format(then="return self.left(x)"))
    assert nodes_of(tmp_path) == ["Gemm"]
    folder = tmp_path / "repro" / "net-1.0.0"
    (folder / "show.py").unlink()
    with pytest.raises(ParityFailed) as caught:
        packager.build(tmp_path / "p" / "package.yaml", tmp_path / "dist")
    mentions(render_error(caught.value), folder)
    assert sorted(os.listdir(folder)) == ["subgraph.onnx", "values.npz"]


def test_the_folder_tells_nothing_of_the_machine(tmp_path):
    refused(tmp_path, BRANCH.format(then="return self.left(x)"))
    for path in (tmp_path / "repro").rglob("*.*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [one for one in (b"/tmp/", str(Path.home()).encode() + b"/", b"site-packages") if one in content]


def test_the_script_has_ten_lines_and_needs_neither_torch_nor_this_package(tmp_path):
    refused(tmp_path, BRANCH.format(then="return self.left(x)"))
    script = tmp_path / "repro/net-1.0.0/show.py"
    code = [line for line in script.read_text().splitlines()[1:] if line and "import" not in line]
    assert len(code) <= 10
    blocked = "import sys, runpy; sys.modules.update(torch=None, onnx=None, packager=None); runpy.run_path(sys.argv[1])"
    assert python(blocked, script).returncode == 0


ATTENDING = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 24)

    def forward(self, x, mask):
        q, k, v = self.layer(x)[:, None].chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
"""
ENCODER = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

    def forward(self, x, mask):
        return self.encoder(x, src_key_padding_mask=~mask)
"""
MASKED = {
    "x": {"dtype": "float32", "shape": ["batch", "seq", 8]},
    "mask": {"dtype": "bool", "shape": ["batch", "seq"]},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "facts", "mended"),
    [
        (
            ATTENDING,
            ("mask", "mask | ~mask.any(-1, keepdim=True)", "forward()"),
            ("=mask[", "=(mask | ~mask.any(-1, keepdim=True))["),
        ),
        (
            ENCODER,
            ("nn.TransformerEncoder", "enable_nested_tensor=False"),
            ("True), 2)", "True), 2, enable_nested_tensor=False)"),
        ),
    ],
)
def test_what_pytorch_alone_defines_of_a_mask_is_told_with_what_mends_it(tmp_path, text, facts, mended, golden):
    settings = {
        "inputs": MASKED,
        "dims": {"seq": {"max": 16}},
        "torchscript": {"method": "none"},
        "export": {"exporter": "torch-export"},
    }
    with pytest.raises(ParityFailed) as caught:
        packager.build(project(tmp_path / "p", text, **settings), tmp_path / "dist")
    lines = [line for problem in caught.value.problems for line in problem.message.splitlines()]
    (advice,) = [line for line in lines if all(carries(line, fact) for fact in facts)]
    golden(advice)
    packager.build(project(tmp_path / "q", text.replace(*mended), **settings), tmp_path / "dist")
