"""Finding where two runs diverge, on activations of plain arrays."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from projects import python

from packager.parity.diagnosis.activations import INPUT_OPERATOR, Activation, Activations
from packager.parity.diagnosis.budget import Budget, OutOfTime
from packager.parity.diagnosis.divergence import find_divergence
from packager.parity.diagnosis.matching import compare_activation
from packager.parity.diagnosis.soundness import MATCH_RULES

OPERATIONS = {
    "add": lambda left, right: left + right,
    "mul": lambda left, right: left * right * 0.7,
    "sin": lambda left, right: np.sin(left * 3.1) + 0.1 * right,
    "mix": lambda left, right: np.tanh(left @ np.linspace(-1, 1, 36).reshape(6, 6)) - right,
}


def evaluate(start, nodes, wrong=None, substitutes=None):
    """The activations of nodes (operation, inputs); the value with index `wrong` is off, others are substituted."""
    arrays, values = [start], [Activation("x", INPUT_OPERATOR, (), start, relative_tolerance=1e-5)]
    for index, (operation, reads) in enumerate(nodes, start=1):
        array = OPERATIONS[operation](*(arrays[read] for read in reads)).astype(np.float32)
        if index == wrong:
            array = (array * np.float32(1.01) + np.float32(0.003)).astype(np.float32)
        array = (substitutes or {}).get(index, array)
        arrays.append(array)
        values.append(Activation(f"v{index}", operation, reads, array, relative_tolerance=1e-5))
    return Activations(tuple(values), {"y": len(nodes)})


@st.composite
def graphs(draw):
    size = draw(st.integers(2, 12))
    nodes = []
    for index in range(1, size + 1):
        reads = (index - 1, draw(st.integers(0, index - 1)))  # so that each node is on the way to the output
        nodes.append((draw(st.sampled_from(sorted(OPERATIONS))), reads))
    return nodes, draw(st.integers(1, size)), draw(st.integers(0, 1000))


@given(graphs(), st.sampled_from(MATCH_RULES))
def test_the_node_that_is_off_is_found(graph, rule):
    nodes, wrong, seed = graph
    start = np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32)
    good, bad = evaluate(start, nodes), evaluate(start, nodes, wrong)
    output = compare_activation(good.values[-1], bad.values[-1].array)
    assume(output is not None and output.error_over_limit > 10)  # otherwise it does not show

    def substitute(values, readers, requested):
        assume(not readers)
        changed = evaluate(start, nodes, wrong, values)
        return {index: changed.values[index].array for index in requested}

    found = find_divergence(good, bad, "y", substitute, rule)
    assert found.suspect_index == wrong or wrong in found.path
    if rule == "unlike":
        assert (found.suspect_index, found.path, found.expected_index) == (wrong, (wrong,), wrong)


@given(graphs(), st.sampled_from(MATCH_RULES), st.integers(0, 3))
def test_a_search_that_is_ended_has_the_node_that_is_off_among_its_suspects(graph, rule, runs):
    nodes, wrong, seed = graph
    start = np.random.default_rng(seed).standard_normal((4, 6)).astype(np.float32)
    good, bad = evaluate(start, nodes), evaluate(start, nodes, wrong)
    output = compare_activation(good.values[-1], bad.values[-1].array)
    assume(output is not None and output.error_over_limit > 10)
    done = []

    def substitute(values, readers, requested):
        if len(done) == runs:
            raise OutOfTime
        done.append(values)
        changed = evaluate(start, nodes, wrong, values)
        return {index: changed.values[index].array for index in requested}

    stops = []
    try:
        find_divergence(good, bad, "y", substitute, rule)
    except OutOfTime as stop:
        stops.append(stop)
    assert all(wrong in stop.suspects for stop in stops)
    with pytest.raises(OutOfTime) as caught:
        find_divergence(good, bad, "y", substitute, rule, Budget(0.0))
    assert wrong in caught.value.suspects


def test_an_output_that_the_reference_does_not_compute_has_no_divergence():
    activations = evaluate(np.ones((4, 6), np.float32), [("sin", (0, 0))])
    assert find_divergence(replace(activations, outputs={}), activations, "y", lambda *_: {}) is None


def test_the_search_for_a_divergence_needs_numpy_alone():
    blocked = "import sys; sys.modules.update(torch=None, onnx=None, onnxruntime=None, pydantic=None, yaml=None)"
    done = python(f"{blocked}; import packager.parity.diagnosis.divergence")
    assert done.returncode == 0, done.stderr
