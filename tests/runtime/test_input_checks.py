"""What a call may pass: arrays of the names, dtypes and shapes of the signature, or what `cast` converts to them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from packager.errors import DataDoesNotFit
from packager.runtime.input_checks import InputChecks

CONFIG = {
    "inputs": [
        {"name": "ids", "dtype": "int64", "shape": ["rows", "length"], "range": [0, 100]},
        {"name": "x", "dtype": "float32", "shape": ["rows", 4], "range": [-1, 1]},
        {"name": "scale", "dtype": "bfloat16", "shape": []},
    ],
    "outputs": [
        {"name": "sum", "dtype": "float32", "shape": ["rows", 4]},
        {"name": "tokens", "dtype": "int64", "shape": ["rows", None, "other"]},
    ],
    "dims": {"rows": {"min": 1, "max": 8}, "length": {"min": 0, "max": None}},
}
CHECKS = InputChecks(CONFIG)


def arrays(rows=2, length=3, **changes):
    values = {
        "ids": np.zeros((rows, length), np.int64),
        "x": np.zeros((rows, 4), np.float32),
        "scale": np.array(1, np.float32),
    }
    return {**values, **changes}


def check(values, *, cast=False, check_values=False):
    return CHECKS.check(values, cast=cast, check_values=check_values)


def refused(values, **options):
    with pytest.raises(DataDoesNotFit) as caught:
        check(values, **options)
    return caught.value


def test_arrays_that_fit_are_passed_on_as_they_are():
    values = arrays()
    assert all(check(values)[name] is array for name, array in values.items())


def test_a_size_of_zero_is_accepted_where_the_dim_allows_it():
    assert check(arrays(length=0))["ids"].shape == (2, 0)
    assert "rows is 0, and must be at least 1 and at most 8" in refused(arrays(rows=0)).why


@pytest.mark.parametrize(
    ("changes", "where", "facts"),
    [
        ({"x": np.zeros((2, 4))}, "x", ("float64[2, 4]", "float32[rows, 4]")),
        ({"x": np.zeros((2, 4), ">f4")}, "x", (">f4[2, 4]", "float32[rows, 4]")),
        ({"x": np.zeros(4, np.float32)}, "x", ("[4]", "[rows, 4]")),
        ({"x": np.zeros((2, 5), np.float32)}, "x", ("[2, 5]", "axis 1 must be 4")),
        ({"x": np.zeros((3, 4), np.float32)}, "x", ("rows is 3 here and 2 in a different input",)),
        ({"scale": np.zeros(1, np.float32)}, "scale", ("[1]", "expected []")),
        ({"scale": 1.0}, "scale", ("float32[]", "float")),
        ({"x": [[0.0] * 4] * 2}, "x", ("numpy array", "list")),
        ({"x": torch.zeros(2, 4)}, "x", ("numpy array", "Tensor")),
        ({"x": None}, "x", ("numpy array", "NoneType")),
        ({"x": np.ma.masked_array(np.zeros((2, 4), np.float32), True)}, "x", ("mask",)),
        ({"y": np.zeros(1)}, "inputs", ("ids, x, scale", "given: ids, x, scale, y")),
    ],
)
def test_what_does_not_fit_is_refused_in_the_callers_words(changes, where, facts):
    error = refused(arrays(**changes))
    assert error.where == where
    assert all(fact in error.why for fact in facts), error.why


def test_a_missing_input_is_named_and_a_similar_one_suggested():
    values = arrays()
    values["idz"] = values.pop("ids")
    assert "did you mean 'ids'?" in refused(values).why
    assert "given: none" in refused({}).why
    assert "mapping" in refused([1]).why


def test_a_subclass_of_an_array_is_passed_as_an_array():
    assert type(check(arrays(x=np.zeros((2, 4), np.float32).view(np.recarray)))["x"]) is np.ndarray


# -- cast -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [[[0, 1, 2, 3], [0.1, 0.2, 0.3, 1e10]], np.ones((2, 4), np.int64), np.ones((2, 4), bool), np.full((2, 4), 0.5)],
    ids=["list", "int64", "bool", "float64"],
)
def test_cast_converts_what_keeps_its_values(x):
    converted = check(arrays(x=x), cast=True)["x"]
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted, np.asarray(x, np.float32))


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"x": np.full((2, 4), 0.1)}, ("8 of 8 values", "0.1 at [0, 0]")),
        ({"x": np.array([[1, 2, 3, 2**24 + 1]] * 2)}, ("2 of 8 values", "16777217 at [0, 3]")),
        ({"x": [[0, 0, 0, 1e300]] * 2}, ("2 of 8 values", "1e+300 at [0, 3]")),
        ({"ids": [[0.5, 0, 0]] * 2}, ("2 of 6 values", "0.5 at [0, 0]")),
        ({"ids": np.full((2, 3), np.nan)}, ("6 of 6 values", "nan")),
        ({"ids": np.full((2, 3), 2**63, np.uint64)}, ("6 of 6 values", "9223372036854775808")),
        ({"ids": [[2**70] * 3] * 2}, ("cannot be converted to int64",)),
        ({"ids": [[1, 2, 3], [4, 5]]}, ("cannot be converted to int64",)),
        ({"ids": [["1", "2", "3"]] * 2}, ("cannot be converted to int64",)),
        ({"ids": np.zeros((2, 3), "datetime64[s]")}, ("cannot be converted to int64",)),
        ({"x": np.zeros((2, 4), complex)}, ("cannot be converted to float32",)),
        ({"x": "text"}, ("numpy array", "str")),
        ({"x": torch.zeros(2, 4)}, ("numpy array", "Tensor")),
    ],
)
def test_cast_refuses_what_would_change_a_value(changes, facts):
    error = refused(arrays(**changes), cast=True)
    assert all(fact in error.why for fact in facts), error.why


@given(
    hnp.arrays(
        st.sampled_from([np.int8, np.uint8, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64, bool]),
        (2, 3),
    )
)
def test_a_cast_either_keeps_every_value_or_is_refused(ids):
    same = bool(np.all(ids == np.trunc(ids.astype(np.float64)))) and all(
        -(2**63) <= int(value) < 2**63 for value in ids.ravel().tolist() if np.isfinite(value)
    )
    try:
        converted = check(arrays(ids=ids), cast=True)["ids"]
    except DataDoesNotFit:
        assert not same or not np.isfinite(ids.astype(np.float64)).all()
        return
    assert converted.dtype == np.int64
    assert converted.ravel().tolist() == [int(value) for value in ids.ravel().tolist()]


# -- ranges ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"ids": np.array([[0, 1, 100]] * 2)}, ("2 of 6 values", "[0, 100)", "ids[0, 2] is 100")),
        ({"ids": np.array([[0, -1, 99]] * 2)}, ("2 of 6 values", "ids[0, 1] is -1")),
        ({"x": np.full((2, 4), np.nan, np.float32)}, ("8 of 8 values", "[-1, 1)", "nan")),
    ],
)
def test_values_outside_of_the_range_are_refused_where_they_are_checked(changes, facts):
    check(arrays(**changes))
    error = refused(arrays(**changes), check_values=True)
    assert all(fact in error.why for fact in facts), error.why


def test_values_within_the_range_and_inputs_without_one_pass():
    check(arrays(ids=np.full((2, 3), 99), scale=np.array(np.inf, np.float32)), check_values=True)


# -- out ------------------------------------------------------------------------------------


def out_refused(out):
    with pytest.raises(DataDoesNotFit) as caught:
        CHECKS.check_out(out, arrays())
    return caught.value


def test_arrays_for_outputs_must_have_their_shape_and_dtype():
    CHECKS.check_out({"sum": np.empty((2, 4), np.float32)}, arrays())
    CHECKS.check_out({"tokens": np.empty((2, 5, 9), np.int64)}, arrays())
    assert "rows is 3 here and 2" in out_refused({"sum": np.empty((3, 4), np.float32)}).why
    assert "float64" in out_refused({"sum": np.empty((2, 4))}).why
    assert "C-contiguous" in out_refused({"sum": np.empty((4, 2), np.float32).T}).why
    frozen = np.empty((2, 4), np.float32)
    frozen.flags.writeable = False
    assert "writeable" in out_refused({"sum": frozen}).why
    assert "no output 'summ'" in out_refused({"summ": np.empty((2, 4), np.float32)}).why
