"""A search for the node at fault ends when its time is over, with what it knows by then."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from messages import mentions
from onnx import TensorProto, helper, numpy_helper
from projects import project

import packager
from packager.common.progress import StageStep
from packager.errors import ParityFailed
from packager.parity.diagnosis import budget, localize, onnx_activations, torch_activations
from packager.parity.diagnosis.activations import ActivationsUnavailable
from packager.parity.diagnosis.budget import STEPS, Budget, OutOfTime
from packager.parity.diagnosis.localize import find_failing_case
from packager.parity.diagnosis.onnx_activations import GraphModel
from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.verdict import ReferenceCase

BRANCH = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        x = self.left(x) if x.sum() > 0 else self.right(x)
        return self.last(torch.tanh(x))
"""


def graph_of(operators, folder, **settings):
    """A graph that applies operators of one input, one after the other, to x[batch, 64]."""
    names = ["x", *(f"v{index}" for index in range(1, len(operators))), "y"]
    nodes = [
        helper.make_node(operator, [names[index]], [names[index + 1]], f"node{index}")
        for index, operator in enumerate(operators)
    ]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:])
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)])
    return GraphModel(model, folder, **settings)


def case_of(name, batch, expected):
    x = np.random.default_rng(0).uniform(1, 2, (batch, 64)).astype(np.float32)
    return ReferenceCase(name, {"x": x}, {"y": expected(x)}, {"y": ElementTolerance(1e-5, 1e-5)})


def test_a_run_that_takes_longer_is_ended(tmp_path):
    size, count = 1 << 10, 600  # seconds of work
    matrix = numpy_helper.from_array(np.full((size, size), 1 / size, np.float32), "w")
    names = ["x", *(f"v{index}" for index in range(1, count)), "y"]
    nodes = [helper.make_node("MatMul", [names[index], "w"], [names[index + 1]]) for index in range(count)]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], [matrix])
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)])
    x = np.ones((size, size), np.float32)
    case = ReferenceCase("000", {"x": x}, {"y": x}, {"y": ElementTolerance(0.0, 0.0)})
    for run in (
        lambda graph: find_failing_case(graph, [case]),
        lambda graph: onnx_activations.run_subgraph(graph, model, {"x": x}),
    ):
        with pytest.raises(OutOfTime):
            run(GraphModel(model, tmp_path, budget=Budget(1.0)))


def test_a_forward_pass_is_ended_at_the_next_operator(tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.3)
            return x + 1

    call = torch_activations.ModuleCall(Net(), {"x": torch.ones(2)}, None, tmp_path)
    activations, _ = torch_activations.record_module(call, 1 << 20)
    for run in (
        lambda call: torch_activations.record_module(call, 1 << 20),
        lambda call: torch_activations.measure_activation_noise(call, activations, 1 << 20),
    ):
        with pytest.raises(OutOfTime):
            run(replace(call, budget=Budget(0.2)))


def test_a_cheap_case_is_chosen_where_cases_are_large_and_a_telling_one_where_they_are_small(tmp_path):
    graph = graph_of(["Neg", "Relu"], tmp_path)
    small, large = (
        [case_of(str(rows), rows, lambda x: x) for rows in sizes] for sizes in ((5, 1, 3), (4000, 2000, 3000))
    )
    assert find_failing_case(graph, small).reference_case.name == "3"  # of dims of size 1 and 2, many values are alike
    assert find_failing_case(graph, large).reference_case.name == "2000"


def test_the_cheapest_case_is_chosen_if_the_first_run_shows_that_runs_are_long(tmp_path, monkeypatch):
    cases = [case_of(str(rows), rows, lambda x: x) for rows in (5, 1, 3)]
    graph = graph_of(["Neg", "Relu"], tmp_path, budget=Budget(60.0))
    run = localize._find_wrong_output

    def take_long(*arguments):
        time.sleep(0.2)
        return run(*arguments)

    assert find_failing_case(graph, cases).reference_case.name == "3"
    monkeypatch.setattr(localize, "_TYPICAL_RUNS", 1000)
    monkeypatch.setattr(localize, "_find_wrong_output", take_long)
    assert find_failing_case(graph, cases).reference_case.name == "1"


def test_a_graph_that_is_right_is_not_confused_with_a_search_out_of_time(tmp_path):
    graph = graph_of(["Neg", "Neg"], tmp_path, budget=Budget(60.0))
    with pytest.raises(ActivationsUnavailable):
        find_failing_case(graph, [case_of("000", 3, lambda x: x)])
    with pytest.raises(OutOfTime):
        find_failing_case(replace(graph, budget=Budget(0.0)), [case_of("000", 3, lambda x: x)])


def test_a_search_that_ends_before_it_has_compared_anything_suspects_every_node(tmp_path):
    case = case_of("000", 3, lambda x: x)
    graph = graph_of(["Neg", "Relu"], tmp_path)
    recorded = onnx_activations.record_graph(graph, case.inputs)
    late = replace(recorded, graph=replace(graph, budget=Budget(0.0)))
    with pytest.raises(OutOfTime) as caught:
        localize.localize(recorded.activations, late, localize.FailingCase(case, "y"))
    assert caught.value.suspects == (0, 1, 2)


# -- a build --------------------------------------------------------------------------------


class StepLog:
    """Collect the steps of the search, and be the clock: a minute passes as the step `slow` begins."""

    def __init__(self, slow=""):
        self.slow = slow
        self.steps = []

    def __call__(self, event):
        if isinstance(event, StageStep):
            self.steps.append(event)

    def monotonic(self):
        return 60.0 if self.slow in [step.description for step in self.steps] else 0.0


def fail_build(tmp_path, log, **options):
    settings = {"export": {"exporter": "torchscript"}, "torchscript": {"method": "none"}}
    path = project(tmp_path / "a project", BRANCH, **settings)
    with pytest.raises(ParityFailed) as caught:
        packager.build(path, tmp_path / "dist", listener=log, **options)
    (problem,) = caught.value.problems
    return problem


def test_a_build_shows_the_steps_of_the_search(tmp_path):
    log = StepLog()
    assert fail_build(tmp_path, log).where == "model.py:14"
    numbers = [step.number for step in log.steps]
    assert numbers == sorted(numbers)
    assert {step.steps for step in log.steps} == {len(STEPS)}
    assert [step.description for step in log.steps][:5] == list(STEPS[:5])
    mentions(log.steps[5].description, "comparison 1", "substitution 1")


@pytest.mark.parametrize("slow", ["module", "comparison 1", "comparison 1: substitution 1 of at most 18"])
def test_a_search_out_of_time_says_what_it_knows_and_how_to_go_on(tmp_path, monkeypatch, slow, golden):
    log = StepLog(slow)
    monkeypatch.setattr(budget, "monotonic", log.monotonic)
    problem = fail_build(tmp_path, log)
    assert problem.where is None
    _, stop, command = problem.message.splitlines()
    nodes = {"module": ("4",), "comparison 1": ("/model/first/Gemm", "/model/last/Gemm")}
    golden(stop, "30 s", *nodes.get(slow, ("/model/left/Gemm", "/model/last/Gemm")))
    golden(command, f"package build '{tmp_path}/a project/package.yaml' --diagnose")
    assert not (tmp_path / "repro").exists()


def test_a_build_that_is_asked_to_diagnose_takes_what_it_needs(tmp_path, monkeypatch):
    log = StepLog("module")
    monkeypatch.setattr(budget, "monotonic", log.monotonic)
    problem = fail_build(tmp_path, log, diagnose=True)
    assert problem.where == "model.py:14"
    mentions(problem.message, "/model/left/Gemm")
