"""The stages of a build run in order, and those that the cache has are not run."""

import yaml
from projects import project

import packager
from packager.common.hashing import sha256_file
from packager.common.progress import StageCached, StageFinished, StageStarted
from packager.export.passes import worker
from packager.export.passes.worker import OnnxWorker


class StageLog:
    """Listen to a build, and collect the names of stages by what became of them."""

    def __init__(self):
        self.events = []

    def __call__(self, event):
        self.events.append(event)

    def names(self, kind):
        return [event.stage.value for event in self.events if isinstance(event, kind)]


def build(path, out, **sections):
    """Build with some sections of the manifest changed; return the stages that ran, and those that were cached."""
    document = {**yaml.safe_load(path.read_text()), **sections}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    log = StageLog()
    result = packager.build(path, out, listener=log)
    assert log.names(StageStarted) == log.names(StageFinished)
    assert result.recalled == set(log.names(StageCached))
    assert list(result.stages) == [*log.names(StageCached), *log.names(StageStarted)]
    return log.names(StageStarted), log.names(StageCached)


def remove_from_cache(folder, file):
    """Remove the cache's copy of a file of a bundle."""
    (copy,) = folder.glob(f"builds-1/objects/??/{sha256_file(file)}")
    copy.unlink()


def test_stages_that_the_cache_has_are_not_run(tmp_path, cache_folder):
    path, out = project(tmp_path / "project"), tmp_path / "out"
    artifacts = ["torchscript", "onnx"]
    assert build(path, out) == (
        ["import", "source", "noise", "trace", "export", "reference", *artifacts, "bundle"],
        [],
    )
    # The artifacts are only checked again.
    assert build(path, out, parity={"samples": 40}) == (
        ["import", "source", "noise", "reference", *artifacts, "bundle"],
        [],
    )
    assert build(path, out, export={"opset": 18}) == (
        ["import", "source", "trace", "export", "onnx", "bundle"],
        ["reference", "torchscript"],
    )
    remove_from_cache(cache_folder, out / "net-1.0.0/model.ts")
    assert build(path, out, license="MIT") == (
        ["import", "source", "trace", "torchscript", "bundle"],
        ["reference", "onnx"],
    )
    assert build(path, out, torchscript={"method": "none"}) == (
        ["import", "source", "trace", "export", *artifacts, "bundle"],
        ["reference"],
    )
    assert build(path, out, description="Different") == (["bundle"], ["reference", *artifacts])
    assert build(path, out) == ([], ["bundle"])


class CountingWorker(OnnxWorker):
    """The ONNX worker, which counts how often a build starts its process ahead of the first job."""

    starts = 0

    def start(self):
        type(self).starts += 1
        super().start()


def test_a_build_starts_one_worker_and_only_if_it_has_a_graph_to_optimize(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "OnnxWorker", CountingWorker)
    path, out, starts = project(tmp_path / "project"), tmp_path / "out", []
    for section in ({}, {"parity": {"samples": 40}}, {"export": {"opset": 18}}, {"description": "Different"}):
        monkeypatch.setattr(CountingWorker, "starts", 0)
        build(path, out, **section)
        starts.append(CountingWorker.starts)
    assert starts == [1, 0, 1, 0]
