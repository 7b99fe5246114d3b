"""Localizing the node at fault in exported graphs that were broken by hand."""

import re
from dataclasses import replace

import architectures
import numpy as np
import onnx
import pytest
from messages import mentions
from onnx import numpy_helper

from packager.export import onnx as exporters
from packager.export import torchscript
from packager.export.graph import io
from packager.model import loader
from packager.model.inputs import bind_inputs
from packager.parity import reference
from packager.parity.cases import sample_grid
from packager.parity.cost import ForwardCost
from packager.parity.diagnosis import localize, onnx_activations, torch_activations
from packager.parity.diagnosis.activations import ActivationsUnavailable
from packager.parity.diagnosis.onnx_activations import GraphModel
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.verdict import ReferenceCase
from packager.project import manifest


def export(architecture, folder):
    """A manifest, its module, the exported graph, and the reference cases."""
    loaded = manifest.load_manifest(architectures.write(architecture, folder))
    with loader.open_model_loader(loaded) as load:
        model = load()
        grid = sample_grid.build_grid(loaded)
        names = exporters.TensorNames(list(loaded.manifest.inputs), list(loaded.manifest.outputs))
        example = bind_inputs(loaded, list(grid.example_case.inputs.values()))
        program = torchscript.trace(model.module, loaded.manifest.outputs, example, loaded.folder)
        raw = exporters.export_from_torchscript(loaded, program, names, example, folder / "raw.onnx")
        noise = reference.measure_noise(loaded, model, grid, {}, ForwardCost(0, 0.0))
        expected = reference.measure_reference(
            loaded, model, grid, noise, probe=(), has_discrete_decisions=False
        ).reference_cases
    return loaded, model.module, GraphModel(io.load_graph(raw), folder), expected


def break_node(graph, name, break_it):
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    (node,) = [node for node in model.graph.node if node.name == name]
    break_it(model, node)
    return GraphModel(model, graph.folder)


def change_axis(model, node):
    (axis,) = node.attribute
    axis.i = 1


def scale_weight(model, node):
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == node.input[1]]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))


def enlarge_epsilon(model, node):
    (epsilon,) = [attribute for attribute in node.attribute if attribute.name == "epsilon"]
    epsilon.f = 1e-3


BROKEN = {
    "an axis in bert": (architectures.BERT, "/model/1/attention/Softmax", change_axis),
    "a weight in resnet": (architectures.RESNET, "/model/layer2/0/conv2/Conv", scale_weight),
    "an epsilon in gpt": (architectures.GPT, "/model/1/ln_2/LayerNormalization", enlarge_epsilon),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_node_that_was_broken_is_found_against_the_module_and_against_the_earlier_graph(tmp_path, case, golden):
    architecture, name, break_it = BROKEN[case]
    loaded, module, good, expected = export(architecture, tmp_path / "p")
    with pytest.raises(ActivationsUnavailable) as caught:
        localize.find_failing_case(good, expected)
    golden(caught.value)
    bad = break_node(good, name, break_it)
    failing = localize.find_failing_case(bad, expected)
    inputs = failing.reference_case.inputs
    tensors = dict(zip(inputs, bind_inputs(loaded, list(inputs.values())), strict=True))
    call = torch_activations.ModuleCall(module, tensors, loaded.manifest.outputs, loaded.folder)
    activations, called = torch_activations.record_module(call, 1 << 30)
    noise = torch_activations.measure_activation_noise(call, activations, 1 << 30)
    assert called >= {"", *(value.module for value in activations.values if value.module)}
    tolerances = [failing.relative_tolerance if value is None else 16 * value for value in noise]
    suspect = onnx_activations.record_graph(bad, inputs)
    fault = localize.localize(activations.with_tolerances(tolerances), suspect, failing)
    assert [node.name for node in fault.nodes] == [name]
    assert fault.reproduces and fault.input_error < 1 < fault.metrics.error_over_limit
    output = fault.subgraph.graph.output[0].name
    mended = onnx_activations.extract_subgraph(good, fault.subgraph_inputs, output, fault.expected)
    actual = onnx_activations.run_subgraph(good, mended, fault.subgraph_inputs)
    np.testing.assert_allclose(actual, fault.expected, rtol=1e-3, atol=1e-4)
    value = activations.values[fault.reference_index]
    assert value.module.rpartition(".")[2] in name
    assert value.source_line.startswith("model.py:")
    mentions(localize.describe_broken_pass(good, bad.model, expected), name)


def test_a_graph_that_is_right_node_by_node_has_no_node_at_fault(tmp_path, golden):
    _, _, graph, expected = export(architectures.CONVNET, tmp_path / "p")
    failing = localize.FailingCase(expected[0], "logits")
    recorded = onnx_activations.record_graph(graph, expected[0].inputs)
    with pytest.raises(ActivationsUnavailable) as caught:
        localize.localize(recorded.activations, recorded, failing)
    golden(caught.value)


def test_activations_that_take_too_much_memory_are_not_recorded(tmp_path, golden):
    loaded, module, graph, expected = export(architectures.CONVNET, tmp_path / "p")
    limited = replace(graph, max_bytes=100)
    with pytest.raises(ActivationsUnavailable) as caught:
        onnx_activations.record_graph(limited, expected[0].inputs)
    golden(caught.value, "0", size=re.search(r"\d+ MiB", str(caught.value)).group())
    inputs = dict(zip(expected[0].inputs, bind_inputs(loaded, list(expected[0].inputs.values())), strict=True))
    with pytest.raises(ActivationsUnavailable) as caught:
        torch_activations.record_module(torch_activations.ModuleCall(module, inputs, None, loaded.folder), 100)
    golden(caught.value)


def test_a_pass_is_diagnosed_within_a_limit_that_does_not_depend_on_the_clock(tmp_path, monkeypatch):
    _, _, good, expected = export(architectures.RESNET, tmp_path / "p")
    bad = break_node(good, "/model/layer2/0/conv2/Conv", scale_weight)
    monkeypatch.setattr(localize, "_MAX_PASS_BYTES", 1000)
    mentions(localize.describe_broken_pass(good, bad.model, expected), "could not be localized", "limit of 0 MiB")


def test_a_graph_that_does_not_run_is_reported(tmp_path):
    node = onnx.helper.make_node("Reshape", ["x", "shape"], ["y"], "fold")
    tensor = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)  # noqa: E731
    shape = numpy_helper.from_array(np.array([5]), "shape")
    graph = onnx.helper.make_graph([node], "g", [tensor("x")], [tensor("y")], [shape])
    opset = onnx.helper.make_opsetid("", 20)
    model = onnx.helper.make_model(graph, ir_version=9, opset_imports=[opset])
    x = np.ones((2, 3), np.float32)
    expected = ReferenceCase("000", {"x": x}, {"y": x.reshape(6)}, {"y": ElementTolerance(0.0, 0.0)})
    with pytest.raises(ActivationsUnavailable, match=r"000.*onnxruntime.*Reshape"):
        localize.find_failing_case(GraphModel(model, tmp_path), [expected])
    with pytest.raises(ActivationsUnavailable, match="onnxruntime"):
        onnx_activations.record_graph(GraphModel(model, tmp_path), {"x": x})
