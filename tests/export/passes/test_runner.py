"""The passes over an exported graph: each recorded, and kept only where it is better and right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from messages import mentions
from projects import project

import packager
from packager.export import onnx as exporters
from packager.export import torchscript
from packager.export.graph import io
from packager.export.graph.messages import ExportedGraph, OptimizeJob
from packager.export.passes import runner
from packager.model import loader
from packager.model.inputs import bind_inputs
from packager.parity import reference
from packager.parity.cases import sample_grid, signature
from packager.parity.numerics.tolerances import NOISE_MULTIPLE
from packager.project import manifest

# Attention and normalization to fuse, shapes to fold, a convolution with batch normalization, and a branch.
SOURCE = """
import math

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(32, 128)
        self.outer = nn.Linear(128, 32)
        self.norm = nn.LayerNorm(32)
        self.table = nn.Linear(32, 600)

    def forward(self, x):
        hidden = self.inner(x)
        hidden = hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))
        y = self.norm(x + self.outer(hidden))
        y = y.reshape(x.shape[0], x.shape[1], 4, 8).transpose(1, 2).transpose(1, 2).flatten(2)
        return {"hidden": y, "scores": self.table(y).softmax(-1)}
"""
INPUTS = {"x": {"dtype": "float32", "shape": ["batch", "length", 32]}}


def export(path, exporter="torchscript"):
    """A job for the exported graph of a project, with expectations."""
    loaded = manifest.load_manifest(path)
    with loader.open_model_loader(loaded) as opening:
        opened = opening()
        grid = sample_grid.build_grid(loaded)
        first = reference.run_case(loaded, opened, grid.example_case)
        second = reference.run_case(loaded, opened, grid.probe_case)
        example = bind_inputs(loaded, list(grid.example_case.inputs.values()))
        names = exporters.TensorNames(list(loaded.manifest.inputs), list(first))
        target = loaded.folder / exporter
        target.mkdir()
        if exporter == "torchscript":
            program = torchscript.trace(opened.module, None, example, loaded.folder)
            raw = exporters.export_from_torchscript(loaded, program, names, example, target / "raw.onnx")
        else:
            raw = exporters.export_with_torch_export(loaded, opened.module, names, example, target / "raw.onnx")
        floor = reference.measure_noise(loaded, opened, grid, {})
        expected = reference.measure_reference(loaded, opened, grid, floor, probe=(), has_discrete_decisions=False)
        outputs = signature.infer_output_specs([(grid.example_case, first), (grid.probe_case, second)])
    return OptimizeJob(
        exported=raw,
        output_path=target / "model.onnx",
        simplify=True,
        level="extended",
        inputs={name: list(spec.shape) for name, spec in loaded.manifest.inputs.items()},
        outputs={one.name: list(one.shape) for one in outputs},
        providers=["CPUExecutionProvider"],
        skipped_passes={},
        reference_cases=expected.reference_cases,
    )


@pytest.fixture(scope="module", params=["torchscript", "torch-export"])
def exported(request, tmp_path_factory):
    return export(project(tmp_path_factory.mktemp("net") / "secret-folder", SOURCE, inputs=INPUTS), request.param)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return export(project(tmp_path_factory.mktemp("net"), SOURCE, inputs=INPUTS))


def run(job, **changes):
    began = []
    done = runner.run_passes(replace(job, **changes), began.append)
    assert began == ["clean", *[one.name for one in done.stages], "save"]
    return done


def computes_the_same(job):
    session = onnxruntime.InferenceSession(job.target)
    for case in job.expectations:
        found = session.run(None, dict(case.inputs))
        for name, array in zip(case.outputs, found, strict=True):
            np.testing.assert_allclose(array, case.outputs[name], rtol=1e-4, atol=1e-4)
    return session


# -- what is kept ---------------------------------------------------------------------------


def test_every_pass_is_recorded_and_the_graph_gets_smaller(exported):
    done = run(exported)
    assert [one.name for one in done.stages] == ["simplify", "fuse", "optimize"]
    nodes = done.before.nodes
    for stage in done.stages:
        assert stage.nodes_before == nodes
        assert stage.verdict in ("pass", "not-checked")
        assert stage.kept == (stage.verdict == "pass")
        assert bool(stage.reason) != stage.kept
        if stage.kept:
            assert (stage.nodes_after, stage.bytes_after) < (stage.nodes_before, stage.bytes_before)
            nodes = stage.nodes_after
    assert done.summary.nodes == nodes < done.before.nodes
    assert not done.summary.external_data
    session = computes_the_same(exported)
    assert [one.shape for one in session.get_outputs()] == [["batch", "length", 32], ["batch", "length", 600]]
    assert [one.name for one in session.get_outputs()] == ["hidden", "scores"]


def test_normalization_becomes_one_operator(traced):
    run(traced)
    operators = {node.op_type for node in onnx.load(traced.target).graph.node}
    assert operators & {"LayerNormalization", "SkipLayerNormalization"}
    assert operators & {"Gelu", "BiasGelu", "FastGelu"}
    assert not operators & {"Erf", "ReduceMean", "Sqrt"}


def test_the_facts_are_those_of_the_file(traced):
    done = run(traced)
    model = onnx.load(traced.target)
    versions = {one.domain or "ai.onnx": one.version for one in model.opset_import}
    assert done.summary.opset == versions["ai.onnx"] == 20
    assert done.summary.ir_version == model.ir_version
    assert done.summary.nodes == runner.count_nodes(model.graph)
    assert set(done.summary.domains) == {node.domain or "ai.onnx" for node in model.graph.node}


def test_level_none_leaves_the_graph_as_exported(traced):
    done = run(traced, level="none", simplify=False)
    assert done.stages == ()
    assert done.summary.nodes == done.before.nodes
    computes_the_same(traced)


@pytest.mark.parametrize(
    ("level", "simplify", "passes"),
    [("none", True, ["simplify"]), ("basic", False, ["optimize"]), ("basic", True, ["simplify", "optimize"]),
     ("extended", False, ["fuse", "optimize"])],
)  # fmt: skip
def test_the_passes_are_those_asked_for(traced, level, simplify, passes):
    done = run(traced, level=level, simplify=simplify)
    assert [one.name for one in done.stages] == passes
    computes_the_same(traced)
    if level != "extended":
        assert set(done.summary.domains) == {"ai.onnx"}


def test_the_same_job_gives_the_same_bytes(exported):
    run(exported)
    first = exported.target.read_bytes()
    run(exported)
    assert exported.target.read_bytes() == first


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
    """The two differ by 4e-4 at most, which is hundreds of floors: what ships is within a few."""
    inputs = {"x": {"dtype": "float32", "shape": ["batch", "length", 8]}}
    path = project(tmp_path / "project", GELU.format(approximate=approximate), inputs=inputs)
    built = packager.build(path, tmp_path / "out")
    operators = [node.op_type for node in onnx.load(built.bundle / "model.onnx").graph.node]
    assert {"Gelu", "BiasGelu", "FastGelu"} & {*operators} == {fused}
    record = json.loads((built.bundle / "evidence/parity.json").read_text())
    stages = {one["name"]: one for one in record["stages"]}
    assert (stages["fuse"]["kept"], stages["fuse"]["verdict"]) == (True, "pass")
    errors = record["backends"]["onnx"]["outputs"]["output_0"]
    floors = NOISE_MULTIPLE * max(errors["of_limit"], errors["of_limit_float64"])
    assert 0 < floors < 4


# -- what is dropped ------------------------------------------------------------------------


def test_a_pass_that_makes_nothing_better_is_dropped(traced, monkeypatch, golden):
    monkeypatch.setattr(runner, "_simplify", lambda model, job: model)
    stage = run(traced, level="none").stages[0]
    assert (stage.kept, stage.verdict) == (False, "not-checked")
    golden(stage.reason)


def test_a_pass_that_fails_is_dropped(traced, monkeypatch, golden):
    def fail(model, job):
        raise RuntimeError("no idea what this is")

    monkeypatch.setattr(runner, "_simplify", fail)
    stage = run(traced, level="none").stages[0]
    assert (stage.kept, stage.verdict) == (False, "not-checked")
    golden(stage.reason, "RuntimeError")
    computes_the_same(traced)


def broken(simplify):
    def scale(model, job):
        found = simplify(model, job)
        for tensor in found.graph.initializer:
            if not tensor.external_data and list(tensor.dims) == [32]:
                values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return found

    return scale


def test_a_pass_that_breaks_parity_is_dropped_where_every_pass_is_proven(traced, monkeypatch):
    monkeypatch.setattr(runner, "_simplify", broken(runner._simplify))
    done = run(traced)
    simplify, *rest = done.stages
    assert (simplify.kept, simplify.verdict) == (False, "fail")
    mentions(simplify.reason, "PyTorch")
    assert any(one.kept for one in rest)
    computes_the_same(traced)


@pytest.mark.parametrize(("early", "kept"), [(True, True), (False, False)])
def test_the_last_pass_is_left_to_whoever_judges_the_graph_that_ships(traced, monkeypatch, early, kept):
    monkeypatch.setattr(runner, "_optimize", broken(runner._optimize))
    *_, last = run(traced, early=early).stages
    assert (last.name, last.kept, last.max_abs is None) == ("optimize", kept, early)


def test_a_pass_that_fixes_a_dim_is_dropped(traced, monkeypatch, golden):
    simplify = runner._simplify

    def fix(model, job):
        found = simplify(model, job)
        found.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
        return found

    monkeypatch.setattr(runner, "_simplify", fix)
    stage = run(traced).stages[0]
    assert (stage.kept, stage.verdict) == (False, "fail")
    golden(stage.reason, "3")


def test_a_pass_that_gives_a_graph_that_does_not_load_is_dropped(traced, monkeypatch):
    def wreck(model, job):
        found = onnx.ModelProto()
        found.CopyFrom(model)
        del found.graph.node[0]
        return found

    monkeypatch.setattr(runner, "_simplify", wreck)
    stage = run(traced).stages[0]
    assert (stage.kept, stage.verdict) == (False, "fail")
    assert stage.reason.startswith("onnxruntime: ")
    computes_the_same(traced)


def test_a_skipped_pass_is_recorded_with_its_reason(traced):
    stage = run(traced, skip={"fuse": "crashed: SIGSEGV"}).stages[1]
    assert (stage.name, stage.kept, stage.verdict, stage.reason) == ("fuse", False, "not-checked", "crashed: SIGSEGV")


def test_an_exported_graph_that_is_wrong_itself_is_refused(traced):
    case = traced.expectations[0]
    wrong = replace(case, outputs={name: array + 1 for name, array in case.outputs.items()})
    done = runner.run_passes(replace(traced, reference_cases=(wrong,)), lambda name: None)
    mentions(done.rejection_reason, "PyTorch")
    assert done.summary is None


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"inputs": {"x": ["batch", "length", 32], "mask": ["batch"]}}, "the graph does not use mask"),
        ({"outputs": {"scores": [], "hidden": []}}, "the graph's outputs are hidden, scores"),
    ],
)
def test_a_graph_of_another_signature_is_refused(traced, changes, refused):
    assert runner.run_passes(replace(traced, **changes), lambda name: None).rejection_reason == refused


# -- what the file says of the machine ------------------------------------------------------


def texts(message):
    """Every string in a protobuf, at any depth."""
    for field, value in message.ListFields():
        for one in value if field.is_repeated else [value]:
            if field.message_type is not None:
                yield from texts(one)
            elif isinstance(one, str):
                yield one


def test_no_stack_trace_doc_string_or_path_stays(exported):
    for changes in ({}, {"simplify": False, "level": "none"}):
        run(exported, **changes)
        content = exported.target.read_bytes()
        for trace in (
            b"secret-folder",
            b"model.py",
            b"stack_trace",
            b"site-packages",
            b"pkg.torch",
            b"/root/",
            b"/tmp/",
        ):
            assert trace not in content, trace
        model = onnx.load(exported.target)
        assert not [one for one in texts(model) if one.startswith(str(Path.home()))]
        assert not model.metadata_props
        assert not model.doc_string + model.graph.doc_string
        for node in model.graph.node:
            assert not node.doc_string
            assert not node.metadata_props
        assert (model.producer_name, model.producer_version, model.graph.name) == ("packager", "", "model")


# -- large weights --------------------------------------------------------------------------


def test_weights_over_the_threshold_go_into_a_file_of_their_own(traced, monkeypatch):
    whole = run(traced)
    size = traced.target.stat().st_size
    monkeypatch.setattr(io, "EXTERNAL_DATA_BYTES", 1 << 16)
    done = run(traced)
    data = traced.target.with_name("model.onnx.data")
    try:
        assert done.summary.external_data
        assert not whole.summary.external_data
        assert data.stat().st_size > 1 << 16
        assert traced.target.stat().st_size < size - (1 << 16)
        model = onnx.load(traced.target, load_external_data=False)
        external = [one for one in model.graph.initializer if one.external_data]
        for one in external:
            entries = {entry.key: entry.value for entry in one.external_data}
            assert entries["location"] == "model.onnx.data"
            assert int(entries["offset"]) % 4096 == 0
        assert external
        computes_the_same(traced)
        onnx.checker.check_model(str(traced.target))
    finally:
        data.unlink()


def test_a_file_written_by_hand_is_what_onnx_reads(tmp_path):
    values = np.arange(40_000, dtype=np.float32)
    weights = [onnx.numpy_helper.from_array(values, "large"), onnx.numpy_helper.from_array(values[:3], "small")]
    node = onnx.helper.make_node("Add", ["large", "x"], ["y"])
    tensor = lambda name, size: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size])  # noqa: E731
    graph = onnx.helper.make_graph([node], "g", [tensor("x", 1)], [tensor("y", 40_000)], weights)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "raw.onnx")
    model = io.load_graph(ExportedGraph(tmp_path / "raw.onnx"))
    assert [bool(one.external_data) for one in model.graph.initializer] == [True, False]
    assert not io.write_graph(model, tmp_path, tmp_path / "model.onnx")
    written = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(written)
    found = {one.name: onnx.numpy_helper.to_array(one) for one in written.graph.initializer}
    assert np.array_equal(found["large"], values)
    assert np.array_equal(found["small"], values[:3])
    assert abs(io.count_model_bytes(model) - (tmp_path / "model.onnx").stat().st_size) < 300


def test_a_file_of_weights_that_ends_early_is_an_error(tmp_path):
    values = onnx.numpy_helper.from_array(np.zeros(40_000, np.float32), "large")
    graph = onnx.helper.make_graph([], "g", [], [], [values])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "raw.onnx")
    model = io.load_graph(ExportedGraph(tmp_path / "raw.onnx"))
    with (tmp_path / "raw.onnx.weights").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(EOFError):
        io.write_graph(model, tmp_path, tmp_path / "model.onnx")


def test_the_nodes_of_subgraphs_count_and_constants_do_not():
    inner = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "inner", [], [])
    constant = onnx.helper.make_node("Constant", [], ["c"], value_float=1.0)
    branch = onnx.helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    assert runner.count_nodes(onnx.helper.make_graph([constant, branch], "g", [], [])) == 3
