"""Input specs and the limits of the dims in, the sizes of the test cases out."""

import math

import pytest
from grids import declared, grid, sizes_of
from hypothesis import given
from hypothesis import strategies as st

from packager.parity.cases import dim_sizes


def test_a_dim_is_tried_at_its_minimum_at_two_at_a_prime_and_at_its_maximum():
    assert sizes_of(grid({"x": ["batch", 3]}, {"batch": {"max": 40}}), "batch") == {1, 2, 3, 40}


def test_a_dim_without_a_maximum_is_tried_at_one_at_two_at_a_prime_and_at_a_large_size(golden):
    built = grid({"x": ["batch", 3]})
    assert sizes_of(built, "batch") == {1, 2, 3, 128}
    (line,) = built.skipped_sizes
    golden(line, "128", "batch")


def test_a_dim_without_a_maximum_stays_small_if_a_large_size_is_expensive(golden):
    built = grid({"x": ["batch", 3, 224, 224]})
    assert sizes_of(built, "batch") == {1, 2, 3}
    (line,) = built.skipped_sizes
    golden(line, "3", "batch")


def test_a_dim_that_may_be_empty_is_tried_empty():
    assert {0, 2, 3} <= sizes_of(grid({"x": ["batch", 3]}, {"batch": {"min": 0}}), "batch")


@pytest.mark.parametrize(("limits", "large"), [({"min": 30}, {128}), ({"min": 30, "max": 10**12}, set())])
def test_a_dim_with_a_large_minimum_still_varies(limits, large):
    assert sizes_of(grid({"x": ["length"]}, {"length": limits}), "length") == {30, 31, 37} | large


@pytest.mark.parametrize(("limits", "expected"), [({"min": 7, "max": 7}, {7}), ({"max": 2}, {1, 2}), ({"max": 1}, {1})])
def test_no_case_leaves_the_limits(limits, expected):
    assert sizes_of(grid({"x": ["batch"]}, {"batch": limits}), "batch") == expected


def test_every_dim_is_varied_alone_and_all_together():
    built = grid({"x": ["a", "b"]}, {"a": {"max": 50}, "b": {"max": 6}})
    example = built.example_case.sizes
    alone = [case.sizes for case in built.cases if case.sizes["b"] == example["b"] and case.sizes != example]
    assert {sizes["a"] for sizes in alone} == {1, 2}
    assert any(case.sizes["a"] == 5 for case in built.cases)  # a prime, with rows of several kinds
    assert {"a": 50, "b": 6} in [case.sizes for case in built.cases]
    assert {"a": 1, "b": 1} in [case.sizes for case in built.cases]


def test_the_example_has_a_different_size_for_every_dim():
    built = grid({"x": ["a", "b", "c"], "y": ["d", "b"]})
    assert built.example_case.sizes == {"a": 2, "b": 3, "c": 4, "d": 5}


def test_the_dim_with_the_smallest_maximum_chooses_its_example_size_first():
    assert grid({"x": ["a", "b"]}, {"b": {"max": 2}}).example_case.sizes == {"a": 3, "b": 2}


def test_arrays_have_the_shapes_that_follow_from_the_sizes():
    for case in grid({"x": ["a", 3, "b"], "y": ["b"], "z": []}).cases:
        shapes = {name: array.shape for name, array in case.inputs.items()}
        assert shapes == {"x": (case.sizes["a"], 3, case.sizes["b"]), "y": (case.sizes["b"],), "z": ()}


LIMITS = st.integers(0, 60).flatmap(
    lambda low: st.fixed_dictionaries(
        {"min": st.just(low)}, optional={"max": st.integers(max(1, low), 60) | st.just(10**15)}
    )
)


@given(st.dictionaries(st.sampled_from("abcd"), LIMITS, min_size=1))
def test_all_sizes_are_within_their_limits_and_the_probe_differs_from_the_example_in_every_dim_that_can_vary(dims):
    built = grid({f"x_{dim}": [dim] for dim in dims}, dims)
    for case in built.cases:
        assert all(
            limit["min"] <= case.sizes[dim] <= limit.get("max", math.inf) and case.inputs[f"x_{dim}"].size < 10**6
            for dim, limit in dims.items()
        )
    can_vary = {dim for dim, limit in dims.items() if limit.get("max") != limit["min"]}
    differs = {dim for dim in dims if built.probe_case.sizes[dim] != built.example_case.sizes[dim]}
    assert differs == can_vary
    assert all(len(sizes_of(built, dim)) > 1 for dim in can_vary)


@given(st.lists(st.sampled_from([{}, {"max": 64}, {"min": 5}, {"min": 9, "max": 128}]), min_size=1, max_size=6))
def test_no_two_dims_have_the_same_example_size_if_the_limits_allow_different_ones(limits):
    dims = {f"d{number}": limit for number, limit in enumerate(limits)}
    sizes = grid({f"x_{dim}": [dim] for dim in dims}, dims).example_case.sizes
    assert len(set(sizes.values())) == len(dims)
    assert 1 not in sizes.values()


def test_a_size_of_more_than_64_mib_is_skipped_and_reported(golden):
    built = grid({"x": ["batch", 1024]}, {"batch": {"max": 8193}})
    (line,) = built.skipped_sizes
    golden(line, "batch=8193", "64", "MiB")
    assert sizes_of(built, "batch") == {1, 2, 3}
    assert 8192 in sizes_of(grid({"x": ["batch", 1024]}, {"batch": {"max": 8192}}), "batch")


@pytest.mark.parametrize("largest", [2**31, 2**63 - 1, 2**63, 2**64 + 1, 10**30])
def test_a_size_that_fits_no_machine_is_skipped(largest, golden):
    built = grid({"x": ["batch", 1024]}, {"batch": {"max": largest}})
    (line,) = built.skipped_sizes
    golden(line, f"batch={largest}", "64", "MiB")
    assert sizes_of(built, "batch") == {1, 2, 3}


def test_all_maximums_together_are_skipped_if_they_take_far_more_than_each_alone():
    built = grid({"x": ["a", "b"]}, {"a": {"max": 5000}, "b": {"max": 9}})
    assert built.skipped_sizes == ("a=5000 b=9 together",)
    assert 5000 in sizes_of(built, "a") and 9 in sizes_of(built, "b")
    assert grid({"x": ["a", "b"]}, {"a": {"max": 5000}, "b": {"max": 8}}).skipped_sizes == ()


def test_example_and_probe_exist_however_large_the_fixed_dims_are(golden):
    large = {"dtype": "int8", "shape": ["batch", 9000, 1000], "range": [0, 2]}
    built = grid({"x": large}, samples=1)
    assert (built.example_case.sizes, built.probe_case.sizes) == ({"batch": 2}, {"batch": 1})
    assert built.probe_case.value_description == "random"
    golden("\n".join(built.skipped_sizes), "3", "batch", "batch=3", "64", "MiB")


def test_without_named_dims_the_probe_is_as_large_as_the_example():
    built = grid({"x": [3, 4]})
    assert built.example_case.sizes == built.probe_case.sizes == {}
    assert built.example_case in built.cases and built.probe_case in built.cases


# -- the parts ------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "prime"), [(1, 2), (2, 3), (3, 5), (23, 29), (89, 97)])
def test_the_next_prime_is_above_the_size(size, prime):
    assert dim_sizes.next_prime(size) == prime


@given(st.integers(1, 3000))
def test_a_prime_has_no_divisor(size):
    prime = dim_sizes.next_prime(size)
    assert prime > size and not any(prime % divisor == 0 for divisor in range(2, prime))


def test_a_case_is_counted_at_eight_bytes_per_element_and_by_the_rows_of_its_batch():
    inputs = declared({"x": ["batch", "length"], "y": [3]}).manifest.inputs
    assert dim_sizes.get_batch_dim(inputs) == "batch"
    assert dim_sizes.count_case_bytes(inputs, {"batch": 5, "length": 7}) == 8 * (5 * 7 + 3)
    assert [dim_sizes.count_rows(inputs, {"batch": size, "length": 7}) for size in (0, 1, 5)] == [1, 1, 5]


@pytest.mark.parametrize("shape", [[], [3, "length"]], ids=["a scalar", "a fixed first dim"])
def test_without_a_named_first_dim_there_is_no_batch_and_a_case_is_one_row(shape):
    inputs = declared({"x": shape}).manifest.inputs
    assert dim_sizes.get_batch_dim(inputs) is None
    assert dim_sizes.count_rows(inputs, {"length": 9}) == 1


def test_small_sizes_are_the_smallest_batch_and_sixteen_for_other_dims_within_their_limits():
    manifest = declared(
        {"x": ["batch", "length", "width"]}, {"batch": {"min": 2}, "length": {"max": 9}, "width": {"min": 40}}
    ).manifest
    sizes = dim_sizes.choose_small_sizes(manifest.inputs, manifest.dim_limits())
    assert sizes == {"batch": 2, "length": 9, "width": 40}
