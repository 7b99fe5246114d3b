"""Comparing two records: laws of the comparison, and how the differences are shown."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.differences.fields import find_differences
from packager.differences.report import Difference, format_pair, format_value

NAMES = st.text("abc.", min_size=1, max_size=2)
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text("ab\n", max_size=2)


def containers(children):
    named = st.tuples(NAMES, children).map(lambda pair: {"name": pair[0], "value": pair[1]})
    return st.lists(children, max_size=3) | st.lists(named, max_size=3) | st.dictionaries(NAMES, children, max_size=3)


RECORDS = st.recursive(SCALARS, containers, max_leaves=12)


def compared(before, after):
    return [(field.where, field.before, field.after) for field in find_differences(before, after)]


@given(RECORDS, RECORDS)
def test_records_are_equal_exactly_if_they_are_written_the_same(before, after):
    assert compared(before, before) == []
    same = json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True)
    assert (compared(before, after) == []) == same


@given(RECORDS, RECORDS)
def test_swapping_the_records_swaps_before_and_after(before, after):
    there = sorted(map(json.dumps, compared(before, after)))
    back = sorted(json.dumps((where, right, left)) for where, left, right in compared(after, before))
    assert there == back


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, [("a.b", 1, 2)]),
        ({"a": 1}, {"b": None}, [("a", 1, None), ("b", None, None)]),
        ({"shape": ["batch", 1]}, {"shape": ["batch", 3]}, [("shape", ["batch", 1], ["batch", 3])]),
        ([{"name": "x", "dtype": "a"}], [{"name": "x", "dtype": "b"}], [("x.dtype", "a", "b")]),
        ([{"name": "x"}, {"name": "y"}], [{"name": "y"}, {"name": "x"}], [("", ["x", "y"], ["y", "x"])]),
        ({"in": []}, {"in": [{"name": "x", "n": 1}]}, [("in.x", None, {"n": 1})]),
        ({"in": [{"name": "x"}, {"name": "x"}]}, {"in": [{"name": "x"}]}, [("in[1]", {"name": "x"}, None)]),
        ([[1], [2]], [[1], [3]], [("[1]", [2], [3])]),
        ({"n": 1}, {"n": True}, [("n", 1, True)]),
        ({"n": 1}, {"n": 1.0}, [("n", 1, 1.0)]),
        ({"n": float("nan")}, {"n": float("nan")}, []),
        (1, 2, [("", 1, 2)]),
    ],
)  # fmt: skip
def test_a_difference_has_the_path_of_its_field(before, after, expected):
    assert compared(before, after) == expected


def test_differences_are_in_the_order_of_the_record():
    differences = compared({"z": 1, "a": 1, "m": 1}, {"a": 2, "b": 2, "z": 2})
    assert [where for where, _, _ in differences] == ["z", "a", "m", "b"]


@given(st.text(max_size=90) | st.floats(), st.text(max_size=90) | st.floats())
def test_different_values_are_shown_as_different_texts(before, after):
    if json.dumps(before) != json.dumps(after):
        left, right = format_pair(before, after)
        assert left != right or {left, right} & {"none"}
        assert max(len(left), len(right)) <= 62
        assert (left + right).isprintable()


@pytest.mark.parametrize(
    ("before", "after", "texts"),
    [
        (1.9073486328125e-06, 2.1e-06, ("1.9e-06", "2.1e-06")),
        (0.30000000000000004, 0.3, ("0.30000000000000004", "0.29999999999999999")),
        (1, 1.0, ("1", "1.0")),
        (None, "", ("none", '""')),
        ("a\nb", "a\x1b[31m", ('"a\\nb"', '"a\\u001b[31m"')),
        ("f" * 64, "0" * 64, ("ffffffffffff…", "000000000000…")),
        ("a" * 100 + "b" * 100, "a" * 100 + "c", ("…" + "a" * 20 + "b" * 40 + "…", "…" + "a" * 20 + "c")),
        ("a" * 100 + "b", "a" * 100, ("…" + "a" * 20 + "b", "…" + "a" * 20)),
        ("x", "y" * 70, ("x", "y" * 60 + "…")),
        (["batch", 1], ["batch", None], ('["batch", 1]', '["batch", null]')),
    ],
)
def test_long_values_are_cut_around_their_first_difference(before, after, texts):
    assert format_pair(before, after) == texts


def test_added_and_removed_fields_are_labelled():
    texts = [Difference("x", *values).text() for values in ((None, 1), (1, None), (1, 2))]
    assert texts == ["added: 1", "removed: 1", "1 → 2"]
    assert format_value("\u202egpj.exe") == '"\\u202egpj.exe"'
