"""Running the passes over an exported graph: each is recorded, and kept only if its graph is better and right."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from messages import mentions
from projects import project

from packager.export import exported_program, torchscript
from packager.export import onnx as exporters
from packager.export.graph import io, walk
from packager.export.graph.messages import OptimizeJob
from packager.export.passes import check, runner
from packager.model import loader
from packager.model.inputs import bind_inputs
from packager.parity import reference
from packager.parity.cases import sample_grid, signature
from packager.parity.cost import ForwardCost
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
DIMS = {"batch": {"max": 4}, "length": {"max": 16}}  # every run compares all cases


def export(path, exporter="torchscript"):
    """A job for the exported graph of a project, with reference cases."""
    loaded = manifest.load_manifest(path)
    with loader.open_model_loader(loaded) as load:
        model = load()
        grid = sample_grid.build_grid(loaded)
        first = reference.run_case(loaded, model, grid.example_case)
        second = reference.run_case(loaded, model, grid.probe_case)
        example = bind_inputs(loaded, list(grid.example_case.inputs.values()))
        names = exporters.TensorNames(list(loaded.manifest.inputs), list(first))
        target = loaded.folder / exporter
        target.mkdir()
        if exporter == "torchscript":
            program = torchscript.trace(model.module, None, example, loaded.folder)
            raw = exporters.export_from_torchscript(loaded, program, names, example, target / "raw.onnx")
        else:
            make_program = partial(exported_program.export, loaded, model.module, example)
            raw = exporters.export_with_torch_export(
                loaded, model.module, make_program, names, example, target / "raw.onnx"
            )
        noise = reference.measure_noise(loaded, model, grid, {}, ForwardCost(0, 0.0))
        expected = reference.measure_reference(loaded, model, grid, noise, probe=(), has_discrete_decisions=False)
        outputs = signature.infer_output_specs([(grid.example_case, first), (grid.probe_case, second)])
    return OptimizeJob(
        exported=raw,
        output_path=target / "model.onnx",
        simplify=True,
        level="extended",
        inputs={name: list(spec.shape) for name, spec in loaded.manifest.inputs.items()},
        outputs={spec.name: list(spec.shape) for spec in outputs},
        providers=["CPUExecutionProvider"],
        skipped_passes={},
        reference_cases=expected.reference_cases,
    )


@pytest.fixture(scope="module", params=["torchscript", "torch-export"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("net") / "secret-folder"
    return export(project(folder, SOURCE, inputs=INPUTS, dims=DIMS), request.param)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return export(project(tmp_path_factory.mktemp("net"), SOURCE, inputs=INPUTS, dims=DIMS))


def run(job, passes=None, **changes):
    """Run the passes, some of them replaced by `passes`."""
    started = []
    result = runner.run_passes(replace(job, **changes), started.append, {**runner.PASSES, **(passes or {})})
    assert started == ["clean", *[stage.name for stage in result.stages], "save"]
    return result


def check_outputs(job):
    """Assert that the graph that was written computes what PyTorch does, and return its session."""
    session = onnxruntime.InferenceSession(job.output_path)
    for case in job.reference_cases:
        arrays = session.run(None, dict(case.inputs))
        for name, array in zip(case.outputs, arrays, strict=True):
            np.testing.assert_allclose(array, case.outputs[name], rtol=1e-4, atol=1e-4)
    return session


# -- kept passes ---------------------------------------------------------------------------


def test_every_pass_is_recorded_and_the_graph_gets_smaller(exported):
    result = run(exported)
    assert [stage.name for stage in result.stages] == ["simplify", "fuse", "optimize"]
    nodes = result.before.nodes
    for stage in result.stages:
        assert stage.nodes_before == nodes
        assert stage.verdict in ("pass", "not-checked")
        assert stage.kept == (stage.verdict == "pass")
        assert bool(stage.reason) != stage.kept
        if stage.kept:
            assert (stage.nodes_after, stage.bytes_after) < (stage.nodes_before, stage.bytes_before)
            nodes = stage.nodes_after
    assert result.summary.nodes == nodes < result.before.nodes
    assert not result.summary.external_data
    session = check_outputs(exported)
    assert [value.shape for value in session.get_outputs()] == [["batch", "length", 32], ["batch", "length", 600]]
    assert [value.name for value in session.get_outputs()] == ["hidden", "scores"]


def test_a_large_graph_is_checked_with_its_weights_transposed_and_ships_the_same_bytes(traced, monkeypatch):
    result, shipped = run(traced), traced.output_path.read_bytes()
    candidate = traced.exported.path.with_name("candidate.weights")
    assert not candidate.exists()
    monkeypatch.setattr(check, "_LARGE_BYTES", 0)
    assert run(traced) == result
    assert traced.output_path.read_bytes() == shipped
    assert candidate.stat().st_size == 4 * 32 * 600


def test_normalization_becomes_one_operator(traced):
    run(traced)
    operators = {node.op_type for node in onnx.load(traced.output_path).graph.node}
    assert operators & {"LayerNormalization", "SkipLayerNormalization"}
    assert operators & {"Gelu", "BiasGelu", "FastGelu"}
    assert not operators & {"Erf", "ReduceMean", "Sqrt"}


def test_the_summary_describes_the_file_that_was_written(traced):
    result = run(traced)
    model = onnx.load(traced.output_path)
    versions = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    assert result.summary.opset == versions["ai.onnx"] == 20
    assert result.summary.ir_version == model.ir_version
    assert result.summary.nodes == walk.count_nodes(model.graph)
    assert set(result.summary.domains) == {node.domain or "ai.onnx" for node in model.graph.node}


def test_level_none_leaves_the_graph_as_exported(traced):
    result = run(traced, level="none", simplify=False)
    assert result.stages == ()
    assert result.summary.nodes == result.before.nodes
    check_outputs(traced)


@pytest.mark.parametrize(
    ("level", "simplify", "passes"),
    [("none", True, ["simplify"]), ("basic", False, ["optimize"]), ("basic", True, ["simplify", "optimize"]),
     ("extended", False, ["fuse", "optimize"])],
)  # fmt: skip
def test_the_passes_are_those_asked_for(traced, level, simplify, passes):
    result = run(traced, level=level, simplify=simplify)
    assert [stage.name for stage in result.stages] == passes
    check_outputs(traced)
    if level != "extended":
        assert set(result.summary.domains) == {"ai.onnx"}


def test_the_same_job_gives_the_same_bytes(exported):
    run(exported)
    first = exported.output_path.read_bytes()
    run(exported)
    assert exported.output_path.read_bytes() == first


# -- dropped passes ------------------------------------------------------------------------


def test_a_pass_that_improves_nothing_is_dropped(traced, golden):
    stage = run(traced, {"simplify": lambda model, job: model}, level="none").stages[0]
    assert (stage.kept, stage.verdict) == (False, "not-checked")
    golden(stage.reason)


def test_a_pass_that_fails_is_dropped(traced, golden):
    def fail(model, job):
        raise RuntimeError("no idea what this is")

    stage = run(traced, {"simplify": fail}, level="none").stages[0]
    assert (stage.kept, stage.verdict) == (False, "not-checked")
    golden(stage.reason, "RuntimeError")
    check_outputs(traced)


def broken(name):
    """A pass that also makes small weights one percent larger, by the name of the real one."""

    def scale(model, job):
        scaled = runner.PASSES[name](model, job)
        for tensor in scaled.graph.initializer:
            if not tensor.external_data and list(tensor.dims) == [32]:
                values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return scaled

    return {name: scale}


def test_a_pass_that_breaks_parity_is_dropped(traced):
    result = run(traced, broken("simplify"))
    simplify, *rest = result.stages
    assert (simplify.kept, simplify.verdict) == (False, "fail")
    mentions(simplify.reason, "PyTorch")
    assert any(stage.kept for stage in rest)
    check_outputs(traced)


@pytest.mark.parametrize(("probe_only", "kept"), [(True, True), (False, False)])
def test_with_probe_cases_only_the_last_pass_is_not_checked(traced, probe_only, kept):
    *_, last = run(traced, broken("optimize"), probe_only=probe_only).stages
    assert (last.name, last.kept, last.max_abs is None) == ("optimize", kept, probe_only)


def test_a_pass_that_fixes_a_dim_is_dropped(traced, golden):
    def fix(model, job):
        fixed = runner.PASSES["simplify"](model, job)
        fixed.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
        return fixed

    stage = run(traced, {"simplify": fix}).stages[0]
    assert (stage.kept, stage.verdict) == (False, "fail")
    golden(stage.reason, "3")


def test_a_pass_that_yields_a_graph_that_does_not_load_is_dropped(traced):
    def wreck(model, job):
        wrecked = onnx.ModelProto()
        wrecked.CopyFrom(model)
        del wrecked.graph.node[0]
        return wrecked

    stage = run(traced, {"simplify": wreck}).stages[0]
    assert (stage.kept, stage.verdict) == (False, "fail")
    assert stage.reason.startswith("onnxruntime: ")
    check_outputs(traced)


def test_a_skipped_pass_is_recorded_with_its_reason(traced):
    stage = run(traced, skipped_passes={"fuse": "crashed: SIGSEGV"}).stages[1]
    assert (stage.name, stage.kept, stage.verdict, stage.reason) == ("fuse", False, "not-checked", "crashed: SIGSEGV")


def test_an_exported_graph_that_is_wrong_itself_is_rejected(traced):
    case = traced.reference_cases[0]
    wrong = replace(case, outputs={name: array + 1 for name, array in case.outputs.items()})
    result = runner.run_passes(replace(traced, reference_cases=(wrong,)), lambda name: None)
    mentions(result.rejection_reason, "PyTorch")
    assert result.summary is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"inputs": {"x": ["batch", "length", 32], "mask": ["batch"]}}, "the graph does not use mask"),
        ({"outputs": {"scores": [], "hidden": []}}, "the graph's outputs are hidden, scores"),
    ],
)
def test_a_graph_with_a_different_signature_is_rejected(traced, changes, reason):
    assert runner.run_passes(replace(traced, **changes), lambda name: None).rejection_reason == reason


# -- no traces of the machine ---------------------------------------------------------------


def iter_strings(message):
    """Iterate over every string in a protobuf, at any depth."""
    for field, value in message.ListFields():
        for element in value if field.is_repeated else [value]:
            if field.message_type is not None:
                yield from iter_strings(element)
            elif isinstance(element, str):
                yield element


def test_no_stack_trace_doc_string_or_path_is_left(exported):
    for changes in ({}, {"simplify": False, "level": "none"}):
        run(exported, **changes)
        content = exported.output_path.read_bytes()
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
        model = onnx.load(exported.output_path)
        assert not [text for text in iter_strings(model) if text.startswith(str(Path.home()))]
        assert not model.metadata_props
        assert not model.doc_string + model.graph.doc_string
        for node in model.graph.node:
            assert not node.doc_string
            assert not node.metadata_props
        assert (model.producer_name, model.producer_version, model.graph.name) == ("packager", "", "model")


# -- large weights --------------------------------------------------------------------------


def test_weights_over_the_threshold_go_into_a_file_of_their_own(traced, monkeypatch):
    whole = run(traced)
    size = traced.output_path.stat().st_size
    monkeypatch.setattr(io, "EXTERNAL_DATA_BYTES", 1 << 16)
    result = run(traced)
    data = traced.output_path.with_name("model.onnx_data")
    try:
        assert result.summary.external_data
        assert not whole.summary.external_data
        assert data.stat().st_size > 1 << 16
        assert traced.output_path.stat().st_size < size - (1 << 16)
        model = onnx.load(traced.output_path, load_external_data=False)
        external = [tensor for tensor in model.graph.initializer if tensor.external_data]
        for tensor in external:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            assert entries["location"] == "model.onnx_data"
            assert int(entries["offset"]) % 4096 == 0
        assert external
        check_outputs(traced)
        onnx.checker.check_model(str(traced.output_path))
    finally:
        data.unlink()
