"""Which cases are measured: batch sizes, other dims, and the values of the inputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.benchmark.plan import SourceCase, choose_source, make_plan, resize_inputs
from packager.errors import DataDoesNotFit

RANDOM = np.random.default_rng(0)


def config(dims, **shapes):
    """Return the parts of config.json that a plan reads: limits of dims, and inputs of int64."""
    inputs = [{"name": name, "dtype": "int64", "shape": shape} for name, shape in shapes.items()]
    return {
        "inputs": inputs,
        "dims": {name: dict(zip(("min", "max"), limits, strict=True)) for name, limits in dims.items()},
    }


TEXT = config({"batch": (1, 64), "sequence": (2, 256)}, ids=["batch", "sequence"], mask=["batch", "sequence"])


def source(name, fill, batch, sequence):
    shape = (batch, sequence)
    return SourceCase(name, fill, {"ids": RANDOM.integers(5, 9, shape), "mask": RANDOM.integers(0, 2, shape)})


def plan(config, sources=(), **options):
    return make_plan(config, sources, **{"sizes": {}, "cores": 2, **options})


@given(st.integers(1, 100), st.none() | st.integers(0, 100))
def test_the_default_batches_are_within_the_limits(smallest, more):
    largest = None if more is None else smallest + more
    made = plan(config({"batch": (smallest, largest)}, x=["batch", 4]))
    rows = [case.rows for case in made.cases]
    assert rows == sorted(set(rows))
    assert all(smallest <= count and (largest is None or count <= largest) for count in rows)
    if smallest == 1:
        assert rows == [1, 8, 32] if largest is None or largest >= 32 else rows[-1] == largest or largest < 8
    assert [case.inputs["x"].shape for case in made.cases] == [(count, 4) for count in rows]


def test_threads_are_one_and_all_usable_cores():
    assert plan(TEXT, cores=8).threads == (1, 8)
    assert plan(TEXT, cores=1).threads == (1,)
    assert plan(TEXT, threads=(4, 2, 4)).threads == (2, 4)


def test_other_dims_have_128_within_their_limits_unless_asked_for():
    assert plan(TEXT).cases[0].sizes == {"batch": 1, "sequence": 128}
    assert plan(TEXT, sizes={"sequence": 7}).cases[0].inputs["mask"].shape == (1, 7)
    short = config({"batch": (1, None), "sequence": (2, 50)}, ids=["batch", "sequence"])
    assert plan(short).cases[0].sizes["sequence"] == 50


def test_a_row_that_would_be_large_has_smaller_dims():
    volume = config(dict.fromkeys("bhwd", (1, None)), x=["b", "h", "w", "d"])
    sizes = plan(volume).cases[0].sizes
    assert sizes["h"] == sizes["w"] == sizes["d"] == 64


def test_a_bundle_without_a_batch_dim_has_one_case_of_one_row():
    made = plan(config({}, x=[3, 4]))
    assert (made.batch_dim, len(made.cases), made.cases[0].rows) == (None, 1, 1)
    with pytest.raises(DataDoesNotFit, match="is fixed"):
        plan(config({}, x=[3, 4]), batches=(2,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": (65,)}, "batch is 65, and must be at least 1 and at most 64"),
        ({"sizes": {"sequence": 1}}, "sequence is 1, and must be at least 2 and at most 256"),
        ({"sizes": {"sequense": 8}}, "did you mean 'sequence'"),
        ({"sizes": {"batch": 8}}, "use --batch"),
    ],
)
def test_sizes_that_the_bundle_does_not_take_are_refused(options, message):
    with pytest.raises(DataDoesNotFit, match=message):
        plan(TEXT, **options)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5))
def test_resized_inputs_have_the_sizes_asked_for_and_no_new_values(batch, sequence, old_batch, old_sequence):
    given_inputs = source("case", "random", old_batch, old_sequence).inputs
    resized = resize_inputs(TEXT, given_inputs, {"batch": batch, "sequence": sequence})
    for name, array in given_inputs.items():
        assert resized[name].shape == (batch, sequence) and resized[name].dtype == array.dtype
        assert set(resized[name].flat) <= set(array.flat)
        kept = np.ix_(range(min(batch, old_batch)), range(min(sequence, old_sequence)))
        assert np.array_equal(resized[name][kept], array[kept])


def test_rows_are_repeated_together_in_all_inputs():
    values = source("case", "random", 3, 4).inputs
    resized = resize_inputs(TEXT, values, {"batch": 7, "sequence": 4})
    for row in range(7):
        assert all(np.array_equal(resized[name][row], values[name][row % 3]) for name in values)


def test_the_nearest_case_with_random_values_is_the_source_and_one_that_must_be_cut_the_last():
    near, far, constant, too_long = (
        source(name, fill, 2, sequence)
        for name, fill, sequence in (
            ("near", "random", 16), ("far", "random", 3), ("constant", "low", 16), ("too long", "random", 33)
        )
    )  # fmt: skip
    sizes = {"batch": 8, "sequence": 32}
    assert choose_source(TEXT, "batch", sizes, [too_long, far, constant, near]) is near
    assert choose_source(TEXT, "batch", sizes, [too_long, far, constant]) is constant
    assert choose_source(TEXT, "batch", sizes, [too_long, far]) is far
    assert choose_source(TEXT, "batch", sizes, [too_long]) is too_long


def test_without_a_case_that_has_values_the_inputs_are_zeros():
    empty = SourceCase("empty", "random", {"ids": np.zeros((0, 4), np.int64), "mask": np.zeros((0, 4), np.int64)})
    case = plan(TEXT, [empty], batches=(2,)).cases[0]
    assert case.source == "zeros"
    assert case.inputs["ids"].shape == (2, 128) and not case.inputs["ids"].any()


def test_a_file_gives_the_sizes_of_its_arrays():
    file = SourceCase("x.npz", "file", source("", "", 3, 5).inputs, is_file=True)
    made = plan(TEXT, [file])
    assert [case.sizes for case in made.cases] == [{"sequence": 5, "batch": rows} for rows in (1, 8, 32)]
    assert {case.source for case in made.cases} == {"x.npz"}
    assert plan(TEXT, [file], sizes={"sequence": 9}).cases[0].inputs["ids"].shape == (1, 9)
