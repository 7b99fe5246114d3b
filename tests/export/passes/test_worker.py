"""The child process that runs the passes: its answers, and what its death costs."""

import os
import signal
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from itertools import pairwise

import onnx
import pytest

from packager.export.graph.messages import ExportedGraph, OptimizeJob
from packager.export.passes.worker import OnnxWorker


@pytest.fixture
def job(tmp_path):
    """A job for a graph with two redundant nodes, which simplify and optimize both remove."""
    names = ["x", "a", "b", "y"]
    nodes = [onnx.helper.make_node("Identity", [start], [end]) for start, end in pairwise(names)]
    nodes[-1].op_type = "Relu"

    def tensor(name):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 4])

    graph = onnx.helper.make_graph(nodes, "g", [tensor("x")], [tensor("y")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "raw.onnx")
    return OptimizeJob(
        exported=ExportedGraph(tmp_path / "raw.onnx"),
        output_path=tmp_path / "model.onnx",
        simplify=True,
        level="extended",
        inputs={"x": ["batch", 4]},
        outputs={"y": ["batch", 4]},
        providers=["CPUExecutionProvider"],
        skipped_passes={},
    )


def test_a_job_is_answered(job):
    with OnnxWorker() as worker:
        result = worker.submit(job).result()
    assert result.rejection_reason == ""
    assert (result.before.nodes, result.summary.nodes) == (3, 1)
    assert [stage.name for stage in result.stages] == ["simplify", "fuse", "optimize"]
    assert onnx.load(job.output_path).graph.node[0].op_type == "Relu"


def test_an_error_in_the_child_is_raised_in_the_parent(job):
    with OnnxWorker() as worker, pytest.raises(FileNotFoundError):
        worker.submit(replace(job, exported=ExportedGraph(job.exported.path.with_name("nowhere.onnx")))).result()


def test_a_worker_without_a_job_ends_at_once():
    with OnnxWorker() as worker:
        worker.start()
        child = worker._child
    assert child.wait(timeout=10) is not None


def test_a_child_that_was_killed_before_the_job_is_started_again(job):
    with OnnxWorker() as worker:
        worker.start()
        worker._child.kill()
        worker._child.wait()
        assert worker.submit(job).result().summary.nodes == 1


def crash(monkeypatch, folder, function):
    """Make a function of a library end the child by a signal, as a fault in its C++ would."""
    module, _, name = function.rpartition(".")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import importlib, os, signal, sys\n\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'packager.export.passes.runner':\n"
        f"            module = importlib.import_module({module!r})\n"
        f"            module.{name} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n\n"
        "sys.meta_path.insert(0, Finder)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.parametrize(
    ("victim", "function"), [("simplify", "onnxsim.simplify"), ("optimize", "onnxruntime.InferenceSession")]
)
def test_a_pass_that_kills_the_child_is_skipped_and_recorded_and_the_others_run(
    job, monkeypatch, tmp_path, victim, function
):
    crash(monkeypatch, tmp_path / "crash", function)
    with OnnxWorker() as worker:
        result = worker.submit(job).result()
    crashed = next(stage for stage in result.stages if stage.name == victim)
    assert (crashed.kept, crashed.verdict, crashed.reason) == (False, "not-checked", "crashed: SIGKILL")
    assert [stage.name for stage in result.stages] == ["simplify", "fuse", "optimize"]
    assert result.summary.nodes == 1  # the other of the two removes them alone
    assert job.output_path.exists()


def test_a_child_that_dies_before_the_passes_refuses_the_graph(job, monkeypatch, tmp_path, golden):
    crash(monkeypatch, tmp_path / "crash", "packager.export.graph.io.count_model_bytes")
    with OnnxWorker() as worker:
        result = worker.submit(job).result()
    golden(result.rejection_reason, "SIGKILL")
    assert result.summary is None


def test_a_child_that_dies_while_it_saves_refuses_the_graph(job, monkeypatch, tmp_path, golden):
    crash(monkeypatch, tmp_path / "crash", "packager.export.graph.io.write_graph")
    with OnnxWorker() as worker:
        golden(worker.submit(job).result().rejection_reason, "SIGKILL")


def test_a_child_that_cannot_start_says_why(job, monkeypatch, tmp_path, golden):
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "onnxsim.py").write_text("raise SystemExit('onnxsim is not for this machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "crash"))
    with OnnxWorker() as worker:
        result = worker.submit(job).result()
    golden(result.rejection_reason, "1", "onnxsim")


def test_an_error_in_the_parent_does_not_wait_for_the_child(job):
    start = time.perf_counter()

    def fail():
        with OnnxWorker() as worker:
            worker.start()
            os.kill(worker._child.pid, signal.SIGSTOP)
            worker.submit(job)
            raise KeyError("the parent has failed")

    with pytest.raises(KeyError):
        fail()
    assert time.perf_counter() - start < 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("onnx-worker")]


def test_cancelling_ends_the_wait_for_every_job_and_starts_no_other_child(job):
    with OnnxWorker() as worker:
        worker.start()
        os.kill(worker._child.pid, signal.SIGSTOP)
        waiting = [worker.submit(job), worker.submit(job)]
        worker.cancel()
        for future in waiting:
            with pytest.raises(CancelledError):
                future.result(timeout=10)
        assert worker._child is None or worker._child.wait(10) == -signal.SIGKILL
        with pytest.raises(RuntimeError):
            worker.submit(job)


def test_what_a_library_prints_does_not_come_between_the_answers(job, monkeypatch, tmp_path):
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "sitecustomize.py").write_text(
        "import importlib.abc, os, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'onnxsim':\n"
        "            print('noise', flush=True); os.write(1, b'noise')\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "noise"))
    with OnnxWorker() as worker:
        assert worker.submit(job).result().summary.nodes == 1


def test_the_child_needs_no_torch(job, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with OnnxWorker() as worker:
        assert worker.submit(job).result().summary.nodes == 1
