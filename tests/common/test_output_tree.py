"""Naming the tensors that forward() returns, in a fixed order."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.common.output_tree import (
    DuplicateOutputName,
    NotATensor,
    OutputNamesMismatch,
    flatten_outputs,
    select_outputs,
)

A, B, C = (np.full(2, value) for value in (1.0, 2.0, 3.0))


@dataclass
class Detection:
    boxes: Any
    scores: Any = None


@dataclass
class Output(OrderedDict):
    """A mapping and a dataclass, like transformers' ModelOutput."""

    logits: Any = None
    past: Any = None

    def __post_init__(self):
        self.update({"logits": self.logits})


Pair = namedtuple("Pair", ["left", "right"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (A, {"output_0": A}),
        ((A, B), {"output_0": A, "output_1": B}),
        ([A], {"output_0": A}),
        ({"logits": A, "hidden": B}, {"logits": A, "hidden": B}),
        ({"z": A, "a": B}, {"z": A, "a": B}),
        ({0: A, 1: B}, {"0": A, "1": B}),
        (Detection(A, B), {"boxes": A, "scores": B}),
        (Detection(A), {"boxes": A}),
        (Output(A), {"logits": A}),
        (Pair(A, B), {"left": A, "right": B}),
        ((A, None, B), {"output_0": A, "output_2": B}),
        ((A, (B, C)), {"output_0": A, "output_1.0": B, "output_1.1": C}),
        ({"layers": [A, {"key": B}], "last": C}, {"layers.0": A, "layers.1.key": B, "last": C}),
        ((Pair(A, B), C), {"output_0.left": A, "output_0.right": B, "output_1": C}),
        ({"a": None, "b": {"c": None, "d": A}}, {"b.d": A}),
    ],
    ids=str,
)
def test_every_tensor_has_a_name_in_the_order_of_the_return_value(value, expected):
    outputs = flatten_outputs(value)
    assert list(outputs) == list(expected)
    assert all(outputs[name] is expected[name] for name in expected)


@pytest.mark.parametrize(
    ("value", "facts"),
    [
        (None, ("NoneType",)),
        (3, ()),
        ("logits", ()),
        (Detection, ()),
        ((A, 3), ("output_1",)),
        ({"a": {"b": 3.0}}, ("a.b",)),
        ({"a": [A, "x"]}, ("a.1",)),
        (Detection(A, 0.5), ()),
        ({}, ()),
        ((None, [None]), ()),
    ],
    ids=str,
)
def test_a_value_that_is_not_a_tensor_is_refused_with_its_position(value, facts, golden):
    with pytest.raises(NotATensor) as caught:
        flatten_outputs(value)
    golden(str(caught.value), *facts)


def test_without_names_the_outputs_keep_their_own():
    assert list(select_outputs({"b": A, "a": B}, None)) == ["b", "a"]


def test_keys_are_selected_in_the_requested_order():
    outputs = select_outputs({"logits": A, "hidden": B, "mask": C}, ["mask", "logits"])
    assert list(outputs) == ["mask", "logits"]
    assert outputs["mask"] is C and outputs["logits"] is A


def test_other_names_rename_in_order():
    outputs = select_outputs({"output_0": A, "output_1": B}, ["boxes", "scores"])
    assert list(outputs) == ["boxes", "scores"]
    assert outputs["boxes"] is A and outputs["scores"] is B


def test_a_key_may_keep_its_name_while_others_are_renamed():
    outputs = select_outputs({"boxes": A, "output_1": B}, ["boxes", "scores"])
    assert outputs["boxes"] is A and outputs["scores"] is B


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["boxes", "b", "c"]])
def test_names_that_are_neither_keys_nor_of_the_right_number_are_refused(names, golden):
    with pytest.raises(OutputNamesMismatch) as caught:
        select_outputs({"boxes": A, "scores": B}, names)
    golden(str(caught.value), ", ".join(names), "forward()", "boxes", "scores")


def test_a_misspelt_name_never_gives_an_output_the_key_of_a_different_one(golden):
    with pytest.raises(OutputNamesMismatch) as caught:
        select_outputs({"boxes": A, "scores": B}, ["scores", "box"])
    golden(str(caught.value), "forward()", "scores", "box", "boxes")


def test_neither_outputs_nor_names_are_changed_in_place():
    flat, names = {"boxes": A, "scores": B}, ["x", "y"]
    select_outputs(flat, names)
    select_outputs(flat, None)["more"] = C
    assert list(flat) == ["boxes", "scores"] and names == ["x", "y"]


NAMES = st.text("abc", min_size=1, max_size=2)


@given(st.dictionaries(NAMES, st.integers(), min_size=1, max_size=4), st.lists(NAMES, unique=True, max_size=5))
def test_an_output_under_its_own_key_is_that_output(flat, names):
    try:
        outputs = select_outputs(flat, names)
    except OutputNamesMismatch:
        outputs = {}
    assert list(outputs) in ([], names)
    assert all(value == flat[name] for name, value in outputs.items() if name in flat)


def test_two_tensors_with_the_same_name_are_refused(golden):
    with pytest.raises(DuplicateOutputName) as caught:
        flatten_outputs({"a": {"b": np.zeros(1)}, "a.b": np.ones(1)})
    golden(caught.value, "a.b")
