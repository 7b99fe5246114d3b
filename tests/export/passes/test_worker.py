"""The child process that does the ONNX half: what it answers, and what its death costs."""

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
    """A graph with two needless nodes, which either pass takes out."""
    names = ["x", "a", "b", "y"]
    nodes = [onnx.helper.make_node("Identity", [one], [other]) for one, other in pairwise(names)]
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
    with OnnxWorker() as side:
        done = side.submit(job).result()
    assert done.rejection_reason == ""
    assert (done.before.nodes, done.summary.nodes) == (3, 1)
    assert [one.name for one in done.stages] == ["simplify", "fuse", "optimize"]
    assert onnx.load(job.target).graph.node[0].op_type == "Relu"


def test_an_error_in_the_child_is_raised_in_the_parent(job):
    with OnnxWorker() as side, pytest.raises(FileNotFoundError):
        side.submit(replace(job, exported=ExportedGraph(job.raw.path.with_name("nowhere.onnx")))).result()


def test_a_side_without_a_job_ends_at_once():
    with OnnxWorker() as side:
        side.start()
        child = side._child
    assert child.wait(timeout=10) is not None


def test_a_child_that_was_killed_before_the_job_is_started_again(job):
    with OnnxWorker() as side:
        side.start()
        side._child.kill()
        side._child.wait()
        assert side.submit(job).result().summary.nodes == 1


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
    with OnnxWorker() as side:
        done = side.submit(job).result()
    crashed = next(one for one in done.stages if one.name == victim)
    assert (crashed.kept, crashed.verdict, crashed.reason) == (False, "not-checked", "crashed: SIGKILL")
    assert [one.name for one in done.stages] == ["simplify", "fuse", "optimize"]
    assert done.summary.nodes == 1  # the other of the two does the work alone
    assert job.target.exists()


def test_a_child_that_dies_before_the_passes_refuses_the_graph(job, monkeypatch, tmp_path, golden):
    crash(monkeypatch, tmp_path / "crash", "packager.export.graph.io.model_bytes")
    with OnnxWorker() as side:
        done = side.submit(job).result()
    golden(done.rejection_reason, "SIGKILL")
    assert done.summary is None


def test_a_child_that_dies_while_it_saves_refuses_the_graph(job, monkeypatch, tmp_path, golden):
    crash(monkeypatch, tmp_path / "crash", "packager.export.graph.io.write")
    with OnnxWorker() as side:
        golden(side.submit(job).result().rejection_reason, "SIGKILL")


def test_a_child_that_cannot_start_says_why(job, monkeypatch, tmp_path, golden):
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "onnxsim.py").write_text("raise SystemExit('onnxsim is not for this machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "crash"))
    with OnnxWorker() as side:
        done = side.submit(job).result()
    golden(done.rejection_reason, "1", "onnxsim")


def test_an_error_in_the_parent_does_not_wait_for_the_child(job):
    began = time.perf_counter()

    def fail():
        with OnnxWorker() as side:
            side.start()
            os.kill(side._child.pid, signal.SIGSTOP)
            side.submit(job)
            raise KeyError("the parent's own trouble")

    with pytest.raises(KeyError):
        fail()
    assert time.perf_counter() - began < 10
    assert not [one for one in threading.enumerate() if one.name.startswith("onnx-side")]


def test_cancelling_ends_the_wait_for_every_job_and_starts_no_other_child(job):
    with OnnxWorker() as side:
        side.start()
        os.kill(side._child.pid, signal.SIGSTOP)
        waiting = [side.submit(job), side.submit(job)]
        side.cancel()
        for future in waiting:
            with pytest.raises(CancelledError):
                future.result(timeout=10)
        assert side._child is None or side._child.wait(10) == -signal.SIGKILL
        with pytest.raises(RuntimeError):
            side.submit(job)


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
    with OnnxWorker() as side:
        assert side.submit(job).result().summary.nodes == 1


def test_the_child_needs_no_torch(job, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with OnnxWorker() as side:
        assert side.submit(job).result().summary.nodes == 1
