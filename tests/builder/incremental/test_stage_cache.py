"""Results of stages go into the cache and come back as they were, as far as they still hold."""

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from packager.builder.incremental import stage_cache
from packager.builder.results import (
    ArtifactResult,
    CachedResults,
    MachineInfo,
    Provenance,
    ReferenceResult,
    StageResults,
)
from packager.bundle import records
from packager.bundle.writer import BundleWriter
from packager.common.cache import Cache
from packager.common.hashing import sha256_file
from packager.export.control_flow import SpecializedControlFlow
from packager.export.graph.messages import StageRecord
from packager.parity.cases.sample_grid import build_grid, draw_extra_case, redraw_case
from packager.parity.cases.signature import TensorSpec
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.decisions import DecisionAgreement, DecisionRule
from packager.parity.numerics.verdict import OutputErrors, ParityResult, ReferenceCase, WorstElement
from packager.parity.results import ChannelCoverage, OutputNoise, Reference, UnexercisedChannels
from packager.project.manifest import load_manifest

MANIFEST = {
    "schema": 1,
    "name": "net",
    "version": "1.0.0",
    "model": {"entry": "model.py:Net"},
    "checkpoint": {"path": "best.pt"},
    "inputs": {"x": {"dtype": "float32", "shape": ["batch", 2], "range": [0, 8]}},
    "dims": {"batch": {"max": 4}},
    "parity": {"data": "real.npz"},
}
MODULE_INPUTS = {"checkpoint": "c" * 64, "code:model": "a" * 64}
OUTPUTS = (TensorSpec("scores", "float32", ("batch",)), TensorSpec("index", "int64", ("batch", 2)))
PASSED = ParityResult(
    True,
    "",
    {"scores": OutputErrors(1e-7, 1e-6, 1e-8, 1.0, 0, 0.25, 0.5), "index": OutputErrors(0, 0, 0, 1.0, 0, 0, None)},
    WorstElement("000", "scores", (1,), 0.5, 0.5000001, 0.5),
    {"scores": DecisionAgreement("argmax", 9, 8, 1)},
)
KEPT = StageRecord("export: torch-export", True, "pass", "", 5, 4, 100, 90, 1e-7)
REJECTED = StageRecord("export: torchscript, from the trace", False, "fail", "scores[0]: wrong", 0, 0, 0, 0, None)
UNSUPPORTED = replace(REJECTED, verdict="not-checked", reason="UnsupportedOperatorError")
FILES = {"model.onnx": b"graph", "model.onnx_data": b"weights", "model.ts": b"program"}


@dataclass(frozen=True)
class Build:
    """What one build writes to the cache, and the next one asks for."""

    folder: Path
    cache: Cache
    writer: BundleWriter

    def project(self, **sections):
        """Write and load the manifest, with some of its sections changed."""
        path = self.folder / "package.yaml"
        path.write_text(json.dumps({**MANIFEST, **sections}))
        return load_manifest(path)

    def write(self, results):
        """Write the results of a build of the manifest; return the stages of which the cache held other results."""
        writes = stage_cache.plan_writes(
            self.project(), MODULE_INPUTS, results, self.writer, self.folder, self.cache.file_digest
        )
        return stage_cache.write_entries(self.cache, writes)

    def load(self, cache=None, module_inputs=MODULE_INPUTS, **sections):
        """Load what the cache has for a manifest."""
        project = self.project(**sections)
        return stage_cache.load_results(cache or self.cache, project, module_inputs, build_grid(project))


@pytest.fixture
def build(tmp_path):
    np.savez(tmp_path / "real.npz", x=np.full((3, 2), 7.0, np.float32))
    writer = BundleWriter(tmp_path / "bundle")
    for path, content in FILES.items():
        writer.add_bytes(path, content)
    return Build(tmp_path, Cache(tmp_path / "cache"), writer)


def make_results(project, **stages):
    """Return results with a reference on drawn, redrawn, added and real inputs; `stages` replace some of them."""
    grid = build_grid(project)
    first, second, *others = grid.cases
    redrawn = redraw_case(project, second.name, second.sizes, ("low",))
    assert redrawn.value_kinds != second.value_kinds
    cases = (first, redrawn, *others, draw_extra_case(project, 3, 2))
    decisions = {"scores": DecisionRule("argmax", -1, 1e-6)}
    reference_cases = tuple(make_reference_case(case, decisions) for case in cases)
    probe = replace(reference_cases[1], tolerances={"scores": ElementTolerance(1.0, 0.0)}, decisions={})
    reference = Reference(
        reference_cases,
        {"scores": OutputNoise(1e-7, 5e-8, {"float64": 1e-7}, "a note")},
        ("scores", "index"),
        cases,
        ("where a tie decides",),
        (probe,),
        ChannelCoverage(10, 9, {"layer.weight": UnexercisedChannels(1, 3, (2,))}, "by gradients", {"scores": 0}),
    )
    provenance = Provenance(
        "c" * 64, "d" * 64, ("model.py",), "model", "module.", ("bias",), (), "Net", 6, 24, None, "the module"
    )
    specialized = SpecializedControlFlow(("model.py:3",), ("transformers/a.py:4",), ("model.py:5",))
    digests = {path: records.OnnxData(path=path, sha256="a" * 64) for path in FILES}
    onnx = records.OnnxArtifact(
        path="model.onnx", sha256="b" * 64, data=digests["model.onnx_data"], opset=20, ir_version=10,
        domains={"": 20}, nodes=4,
    )  # fmt: skip
    script = records.TorchScriptArtifact(path="model.ts", sha256="e" * 64, method="script", optimize_for_inference=True)
    results = StageResults(
        ReferenceResult(provenance, MachineInfo(2, "AVX2"), OUTPUTS, reference),
        ArtifactResult(onnx, PASSED, (UNSUPPORTED, KEPT), specialized, OUTPUTS),
        ArtifactResult(script, PASSED, (KEPT,), specialized, has_discrete_decisions=False),
    )
    return replace(results, **stages)


def make_reference_case(case, decisions):
    """Return outputs that depend on the inputs; one is in Fortran order, which safetensors would not keep."""
    scores = case.inputs["x"].sum(axis=1)
    return ReferenceCase(
        case.name,
        case.inputs,
        {"scores": scores, "index": np.asfortranarray(np.arange(2 * len(scores)).reshape(-1, 2))},
        {"scores": ElementTolerance(len(scores) * 1e-6, 1e-5), "index": ElementTolerance(0.0, 0.0)},
        case.sizes,
        {"scores": case.inputs["x"].astype(np.float64).sum(axis=1)},
        decisions,
    )


def plain(value):
    """Return a value of dataclasses and arrays as one that can be compared: arrays by dtype, shape and bytes."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (tuple, list)) else value


# -- as they were ---------------------------------------------------------------------------


def test_all_results_come_back_as_they_were(build):
    results = make_results(build.project())
    assert build.write(results) == []
    cached = build.load()
    assert plain(cached.to_results()) == plain(results)
    assert cached.stages == {"reference", "torchscript", "torchscript parity", "onnx", "onnx parity"}
    assert {path: file.read_bytes() for path, file in cached.files.items()} == FILES


def test_a_reference_comes_back_with_its_real_redrawn_and_added_inputs(build):
    results = make_results(build.project())
    build.write(results)
    cases = {case.name: case for case in build.load().reference.reference.cases}
    assert cases["data"].inputs["x"].tolist() == [[7.0, 7.0]] * 3
    assert cases["001"].value_kinds == ("low",)
    assert cases["1003"].sizes == {"batch": 2}
    drawn = {case.name: case for case in build_grid(build.project()).cases}
    assert not np.array_equal(cases["001"].inputs["x"], drawn["001"].inputs["x"])


def test_float64_outputs_come_back_in_float64_and_only_where_there_were_any(build):
    build.write(make_results(build.project()))
    for case in build.load().reference.reference.reference_cases:
        assert {name: str(array.dtype) for name, array in case.float64_outputs.items()} == {"scores": "float64"}
        assert {name: str(array.dtype) for name, array in case.outputs.items()} == {
            "scores": "float32",
            "index": "int64",
        }


def test_a_bundle_without_a_graph_comes_back_without_one(build):
    for path in ("model.onnx", "model.onnx_data"):
        build.writer.remove_file(path)
    results = make_results(build.project(), onnx=ArtifactResult(None, None, (UNSUPPORTED,), outputs=OUTPUTS))
    build.write(results)
    cached = build.load()
    assert plain(cached.to_results()) == plain(results)
    assert set(cached.files) == {"model.ts"}


# -- as far as they hold --------------------------------------------------------------------


def test_artifacts_outlive_the_cases_they_were_checked_on_and_are_to_be_checked_again(build):
    results = make_results(build.project())
    build.write(results)
    cached = build.load(parity={"samples": 40})
    assert cached.reference is None
    assert plain(cached.onnx) == plain(replace(results.onnx, parity=None))
    assert plain(cached.torchscript) == plain(replace(results.torchscript, parity=None))
    assert cached.stages == {"torchscript", "onnx"}
    assert [cached.is_complete(stage) for stage in ("reference", "torchscript", "onnx")] == [False] * 3
    assert cached.to_results() is None


def test_an_artifact_that_the_cases_decided_on_is_found_only_with_them(build):
    for stage, other in (("onnx", "torchscript"), ("torchscript", "onnx")):
        results = make_results(build.project())
        rejected = replace(getattr(results, stage), stages=(REJECTED, KEPT))
        results = replace(results, **{stage: rejected})
        build.cache.clear()
        build.write(results)
        assert plain(build.load().to_results()) == plain(results)
        cached = build.load(parity={"samples": 40})
        assert getattr(cached, stage) is None
        assert cached.stages == {other}
        assert set(cached.files) == ({"model.ts"} if stage == "onnx" else {"model.onnx", "model.onnx_data"})


def test_a_change_of_the_exporter_leaves_the_other_stages(build):
    build.write(make_results(build.project()))
    cached = build.load(export={"opset": 18})
    assert cached.stages == {"reference", "torchscript", "torchscript parity"}
    assert (cached.onnx, set(cached.files)) == (None, {"model.ts"})
    assert [cached.is_complete(stage) for stage in ("reference", "torchscript", "onnx")] == [True, True, False]


def test_different_weights_leave_nothing(build):
    build.write(make_results(build.project()))
    assert build.load(module_inputs={**MODULE_INPUTS, "checkpoint": "d" * 64}) == CachedResults()


def test_a_graph_that_names_other_dims_than_the_reference_shows_is_not_used(build):
    results = make_results(build.project())
    stale = replace(results.onnx, outputs=(replace(OUTPUTS[0], shape=(None,)), OUTPUTS[1]))
    build.write(replace(results, onnx=stale))
    cached = build.load()
    assert cached.onnx is None
    assert cached.stages == {"reference", "torchscript", "torchscript parity"}
    assert set(cached.files) == {"model.ts"}


class EmptiedCache(Cache):
    """A cache that is emptied by somebody else as soon as the files of an entry have been checked."""

    def has_object(self, sha256):
        present = super().has_object(sha256)
        self.clear()
        return present


def test_a_cache_that_is_emptied_meanwhile_has_no_results(build):
    build.write(make_results(build.project()))
    assert build.load(cache=EmptiedCache(build.folder / "cache")) == CachedResults()


def test_an_entry_whose_file_is_damaged_is_not_used(build):
    build.write(make_results(build.project()))
    graph = build.cache.object_path(build.writer.digests["model.onnx"])
    graph.write_bytes(b"grapes")
    cached = build.load(cache=Cache(build.folder / "cache"))
    assert cached.onnx is None
    assert cached.torchscript is not None


# -- what is written ------------------------------------------------------------------------


def test_the_same_results_are_no_difference_and_others_are_named(build):
    results = make_results(build.project())
    assert build.write(results) == []
    assert build.write(results) == []
    graph = results.onnx.artifact.model_copy(update={"nodes": 5})
    assert build.write(replace(results, onnx=replace(results.onnx, artifact=graph))) == ["onnx"]
    noise = replace(results.reference.reference, noise={})
    changed = replace(results, reference=replace(results.reference, reference=noise))
    assert build.write(changed) == ["reference", "onnx"]


def test_the_parity_of_an_artifact_is_written_apart_from_it(build):
    results = make_results(build.project())
    project = build.project()
    writes = stage_cache.plan_writes(project, MODULE_INPUTS, results, build.writer, build.folder, sha256_file)
    assert [write.key.stage for write in writes] == [
        "reference", "torchscript", "torchscript parity", "onnx", "onnx parity",
    ]  # fmt: skip
    assert {write.key.stage: set(write.files) for write in writes} == {
        "reference": {"outputs.safetensors"},
        "torchscript": {"model.ts"},
        "torchscript parity": set(),
        "onnx": {"model.onnx", "model.onnx_data"},
        "onnx parity": set(),
    }
    entries = {write.key.stage: write.entry for write in writes}
    assert entries["onnx"].record["parity"] is None
    assert writes[4].key.inputs["artifact"] == entries["onnx"].digest
    assert writes[4].key.inputs["reference"] == entries["reference"].digest
