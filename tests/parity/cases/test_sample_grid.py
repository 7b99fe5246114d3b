"""Input specs + seed → the grid of inputs."""

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions

from packager.errors import DataDoesNotFit, render_error
from packager.parity.cases import sample_grid
from packager.project.manifest import Manifest, Project
from packager.project.yaml_source import YamlDocument


def project(inputs, dims=None, *, folder=Path(), **parity):
    """A project with these inputs, each a dict or the shape of a float32."""
    specs = {
        name: spec if isinstance(spec, dict) else {"dtype": "float32", "shape": spec} for name, spec in inputs.items()
    }
    manifest = Manifest.model_validate(
        {
            "schema": 1,
            "name": "n",
            "version": "1.0.0",
            "model": {"entry": "model.py:Net"},
            "checkpoint": {"path": "best.pt"},
            "inputs": specs,
            "dims": dims or {},
            "parity": parity,
        }
    )
    return Project(folder / "package.yaml", manifest, "0" * 64, YamlDocument({}, {}))


def grid(*inputs_and_dims, **parity):
    return sample_grid.build_grid(project(*inputs_and_dims, **parity))


def sizes_of(found, dim):
    return {case.sizes[dim] for case in found.cases}


def same(left, right):
    """Whether two cases hold the same arrays, name by name and byte by byte."""
    return list(left.inputs) == list(right.inputs) and all(
        (left.inputs[name].dtype, left.inputs[name].shape, left.inputs[name].tobytes())
        == (right.inputs[name].dtype, right.inputs[name].shape, right.inputs[name].tobytes())
        for name in left.inputs
    )


# -- sizes ----------------------------------------------------------------------------------


def test_a_dim_is_tried_at_its_smallest_at_two_at_a_prime_and_at_its_largest():
    assert sizes_of(grid({"x": ["batch", 3]}, {"batch": {"max": 40}}), "batch") == {1, 2, 3, 40}


def test_a_dim_without_limits_is_tried_at_one_two_a_prime_and_far_beyond(golden):
    found = grid({"x": ["batch", 3]})
    assert sizes_of(found, "batch") == {1, 2, 3, 128}
    (line,) = found.skipped_sizes
    golden(line, "128", "batch")


def test_a_dim_without_limits_stays_small_where_large_is_dear(golden):
    found = grid({"x": ["batch", 3, 224, 224]})
    assert sizes_of(found, "batch") == {1, 2, 3}
    (line,) = found.skipped_sizes
    golden(line, "3", "batch")


def test_a_dim_that_may_be_empty_is_tried_empty():
    assert {0, 2, 3} <= sizes_of(grid({"x": ["batch", 3]}, {"batch": {"min": 0}}), "batch")


@pytest.mark.parametrize(("limits", "large"), [({"min": 30}, {128}), ({"min": 30, "max": 10**12}, set())])
def test_a_dim_that_starts_high_still_varies(limits, large):
    assert sizes_of(grid({"x": ["length"]}, {"length": limits}), "length") == {30, 31, 37} | large


@pytest.mark.parametrize(("limits", "expected"), [({"min": 7, "max": 7}, {7}), ({"max": 2}, {1, 2}), ({"max": 1}, {1})])
def test_no_case_leaves_the_limits(limits, expected):
    assert sizes_of(grid({"x": ["batch"]}, {"batch": limits}), "batch") == expected


def test_every_dim_is_varied_alone_and_all_together():
    found = grid({"x": ["a", "b"]}, {"a": {"max": 50}, "b": {"max": 6}})
    example = found.example_case.sizes
    alone = [case.sizes for case in found.cases if case.sizes["b"] == example["b"] and case.sizes != example]
    assert {one["a"] for one in alone} == {1, 2}
    assert any(case.sizes["a"] == 5 for case in found.cases)  # a prime, with rows of several kinds
    assert {"a": 50, "b": 6} in [case.sizes for case in found.cases]
    assert {"a": 1, "b": 1} in [case.sizes for case in found.cases]


def test_the_example_has_a_size_of_its_own_for_every_dim():
    found = grid({"x": ["a", "b", "c"], "y": ["d", "b"]})
    assert found.example_case.sizes == {"a": 2, "b": 3, "c": 4, "d": 5}


def test_the_tightest_dim_chooses_its_example_size_first():
    assert grid({"x": ["a", "b"]}, {"b": {"max": 2}}).example_case.sizes == {"a": 3, "b": 2}


def test_arrays_have_the_shapes_that_the_sizes_say():
    for case in grid({"x": ["a", 3, "b"], "y": ["b"], "z": []}).cases:
        found = {name: array.shape for name, array in case.inputs.items()}
        assert found == {"x": (case.sizes["a"], 3, case.sizes["b"]), "y": (case.sizes["b"],), "z": ()}


LIMITS = st.integers(0, 60).flatmap(
    lambda low: st.fixed_dictionaries(
        {"min": st.just(low)}, optional={"max": st.integers(max(1, low), 60) | st.just(10**15)}
    )
)


@given(st.dictionaries(st.sampled_from("abcd"), LIMITS, min_size=1))
def test_whatever_the_limits_the_grid_keeps_them_and_the_contrast_differs_in_every_dim_that_may(dims):
    found = grid({f"x_{dim}": [dim] for dim in dims}, dims)
    for case in found.cases:
        assert all(
            limit["min"] <= case.sizes[dim] <= limit.get("max", math.inf) and case.inputs[f"x_{dim}"].size < 10**6
            for dim, limit in dims.items()
        )
    may_differ = {dim for dim, limit in dims.items() if limit.get("max") != limit["min"]}
    differs = {dim for dim in dims if found.probe_case.sizes[dim] != found.example_case.sizes[dim]}
    assert differs == may_differ
    assert all(len(sizes_of(found, dim)) > 1 for dim in may_differ)


@given(st.lists(st.sampled_from([{}, {"max": 64}, {"min": 5}, {"min": 9, "max": 128}]), min_size=1, max_size=6))
def test_no_two_dims_share_an_example_size_where_there_is_room(limits):
    dims = {f"d{number}": limit for number, limit in enumerate(limits)}
    sizes = grid({f"x_{dim}": [dim] for dim in dims}, dims).example_case.sizes
    assert len(set(sizes.values())) == len(dims)
    assert 1 not in sizes.values()


def test_a_size_of_more_than_64_mib_is_left_out_and_said_to_be(golden):
    found = grid({"x": ["batch", 1024]}, {"batch": {"max": 8193}})
    (line,) = found.skipped_sizes
    golden(line, "batch=8193", "64", "MiB")
    assert sizes_of(found, "batch") == {1, 2, 3}
    assert 8192 in sizes_of(grid({"x": ["batch", 1024]}, {"batch": {"max": 8192}}), "batch")


@pytest.mark.parametrize("largest", [2**31, 2**63 - 1, 2**63, 2**64 + 1, 10**30])
def test_a_size_that_no_machine_holds_is_left_out(largest, golden):
    found = grid({"x": ["batch", 1024]}, {"batch": {"max": largest}})
    (line,) = found.skipped_sizes
    golden(line, f"batch={largest}", "64", "MiB")
    assert sizes_of(found, "batch") == {1, 2, 3}


def test_all_dims_at_their_largest_are_left_out_where_that_is_far_more_than_each_alone():
    found = grid({"x": ["a", "b"]}, {"a": {"max": 5000}, "b": {"max": 9}})
    assert found.skipped_sizes == ("a=5000 b=9 together",)
    assert 5000 in sizes_of(found, "a") and 9 in sizes_of(found, "b")
    assert grid({"x": ["a", "b"]}, {"a": {"max": 5000}, "b": {"max": 8}}).skipped_sizes == ()


def test_example_and_contrast_are_there_however_large_the_fixed_dims_are(golden):
    large = {"dtype": "int8", "shape": ["batch", 9000, 1000], "range": [0, 2]}
    found = grid({"x": large}, samples=1)
    assert (found.example_case.sizes, found.probe_case.sizes) == ({"batch": 2}, {"batch": 1})
    assert found.probe_case.value_description == "random"
    golden("\n".join(found.skipped_sizes), "3", "batch", "batch=3", "64", "MiB")


def test_without_named_dims_the_contrast_is_as_large_as_the_example():
    found = grid({"x": [3, 4]})
    assert found.example_case.sizes == found.probe_case.sizes == {}
    assert found.example_case in found.cases and found.probe_case in found.cases


# -- how many, and which values -------------------------------------------------------------


def test_there_are_as_many_samples_as_asked_for():
    assert [case.name for case in grid({"x": [3]}, samples=12).cases] == [f"{index:03}" for index in range(12)]
    rows = sum(len(case.inputs["x"]) for case in grid({"x": ["batch", 3]}, samples=200).cases)
    assert 200 <= rows < 300


def test_every_size_gets_its_case_however_few_samples_are_asked_for():
    assert sizes_of(grid({"x": ["batch"]}, {"batch": {"max": 9}}, samples=1), "batch") == {1, 2, 3, 9}


def test_a_range_is_tried_at_both_its_ends():
    ids = {"dtype": "int64", "shape": ["batch", "length"], "range": [5, 100]}
    fills = {case.value_description: case.inputs["ids"] for case in grid({"ids": ids}).cases}
    assert set(fills) == {"random", "extremes", "low", "high"}
    assert (np.unique(fills["low"]).tolist(), np.unique(fills["high"]).tolist()) == ([5], [99])


def test_an_input_without_a_range_is_standard_normal_in_every_case():
    ranged = {"dtype": "float32", "shape": ["batch"], "range": [0, 1]}
    cases = grid({"x": ["batch", 50], "y": ranged}, {"batch": {"max": 400}}).cases
    assert all(len(np.unique(case.inputs["x"])) > 10 for case in cases)
    largest = max((case.inputs["x"] for case in cases), key=np.size)
    assert abs(float(largest.mean())) < 0.05 and abs(float(largest.std()) - 1) < 0.05


def test_a_bool_input_is_true_and_false():
    cases = grid({"x": {"dtype": "bool", "shape": ["batch", 9]}}, {"batch": {"max": 99}}).cases
    fills = {case.value_description: case.inputs["x"] for case in cases}
    assert {array.dtype for array in fills.values()} == {np.dtype("bool")}
    assert {fill: set(array.ravel().tolist()) for fill, array in fills.items()} == {
        "random": {True, False}, "padded": {True, False}, "whole": {True}, "low": {False}, "high": {True}
    }  # fmt: skip


@pytest.mark.parametrize("limits", [None, [-1, 1]])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "batch"), [(["batch", 3, 64, 64], {}), (["batch", 500], {"min": 30}), ([3, 99, 99], None)]
)
def test_however_large_the_inputs_a_few_elements_of_all_cases_are_subnormal(shape, batch, dtype, limits):
    inputs = {name: {"dtype": dtype, "shape": shape, "range": limits} for name in "xy"}
    cases = grid(inputs, {} if batch is None else {"batch": batch}).cases
    counts = {
        case.name: sum(
            int(np.count_nonzero((one != 0) & (np.abs(one) < np.finfo(one.dtype).smallest_normal)))
            for one in case.inputs.values()
        )
        for case in cases
    }
    assert {name for name, count in counts.items() if count} == {
        case.name for case in cases if case.value_kinds == ("vanishing",)
    }
    assert sum(counts.values()) == 16


def test_the_sample_of_vanishing_values_shows_what_flushes_them_and_what_drops_the_sign_of_zero():
    case = next(case for case in grid({"x": ["batch", 64]}).cases if case.value_kinds == ("vanishing",))
    x = torch.from_numpy(case.inputs["x"])
    expected = x * 1e30
    assert torch.set_flush_denormal(True)
    try:
        flushed = x * 1e30
    finally:
        torch.set_flush_denormal(False)
    assert 0 < (flushed != expected).sum() <= 8
    unsigned = x + 0.0  # as -0.0 + 0.0 is 0.0
    assert (1 / unsigned != 1 / x).any()


@given(st.integers(0, 2**64), st.integers(0, 1000))
def test_the_same_seed_gives_the_same_arrays_and_another_seed_others(seed, step):
    inputs = {"x": ["batch", 4], "ids": {"dtype": "int64", "shape": ["batch"], "range": [0, 2**60]}}
    first, second = grid(inputs, seed=seed), grid(inputs, seed=seed)
    assert all(same(*pair) for pair in zip(first.cases, second.cases, strict=True))
    other = grid(inputs, seed=seed + 1 + step)
    assert not any(
        same(*pair) for pair in zip(first.cases, other.cases, strict=True) if pair[0].value_description == "random"
    )


def test_no_two_cases_and_no_two_inputs_have_the_same_values():
    arrays = [array for case in grid({"x": [8], "y": [8]}).cases for array in case.inputs.values()]
    assert len({array.tobytes() for array in arrays}) == len(arrays)


@pytest.mark.parametrize("place", ["before", "after"])
def test_adding_an_input_that_is_varied_in_no_other_ways_changes_no_other(place):
    inputs = {"x": ["batch", 4], "ids": {"dtype": "int64", "shape": ["batch"], "range": [0, 9]}}
    other = {"y": {"dtype": "float32", "shape": ["batch"]}}
    before = grid(inputs)
    after = grid({**other, **inputs} if place == "before" else {**inputs, **other})
    for case, other in zip(before.cases, after.cases, strict=True):
        assert all(np.array_equal(case.inputs[name], other.inputs[name]) for name in inputs)


def test_more_samples_leave_the_first_as_they_are():
    few, many = grid({"x": ["batch", 4]}, samples=8), grid({"x": ["batch", 4]}, samples=200)
    assert len(many.cases) > len(few.cases)
    assert all(same(*pair) for pair in zip(few.cases, many.cases, strict=False))


# -- the user's own data --------------------------------------------------------------------

TWO = {"x": ["batch", 3], "ids": {"dtype": "int64", "shape": ["batch"], "range": [0, 9]}}


def arrays(batch=5, **other):
    return {"x": np.arange(batch * 3, dtype=np.float32).reshape(batch, 3), "ids": np.arange(batch), **other}


def test_an_npz_is_one_more_case(tmp_path):
    np.savez(tmp_path / "real.npz", **arrays())
    plain = sample_grid.build_grid(project(TWO))
    found = sample_grid.build_grid(project(TWO, folder=tmp_path, data="real.npz"))
    assert len(found.cases) == len(plain.cases) + 1
    case = found.cases[-1]
    assert (case.name, case.value_description, case.sizes, list(case.inputs)) == (
        "data",
        "data",
        {"batch": 5},
        ["x", "ids"],
    )
    assert all(np.array_equal(case.inputs[name], array) for name, array in arrays().items())


def test_a_safetensors_file_is_one_more_case(tmp_path):
    safetensors.numpy.save_file(arrays(), tmp_path / "real.safetensors")
    case = sample_grid.build_grid(project(TWO, folder=tmp_path, data="real.safetensors")).cases[-1]
    assert all(np.array_equal(case.inputs[name], array) for name, array in arrays().items())


def test_real_inputs_are_never_the_example(tmp_path):
    np.savez(tmp_path / "real.npz", **arrays(batch=2))
    found = sample_grid.build_grid(project(TWO, folder=tmp_path, data="real.npz"))
    assert found.example_case.sizes == found.cases[-1].sizes
    assert found.example_case.name == "000"


def test_a_bfloat16_input_is_given_as_float32(tmp_path):
    np.savez(tmp_path / "real.npz", x=np.ones(3, np.float32))
    inputs = {"x": {"dtype": "bfloat16", "shape": [3]}}
    assert (
        sample_grid.build_grid(project(inputs, folder=tmp_path, data="real.npz")).cases[-1].inputs["x"].dtype
        == np.float32
    )


@pytest.mark.parametrize(
    ("given_arrays", "facts"),
    [
        ({"x": arrays()["x"]}, ("real.npz", "ids")),
        (arrays(mask=np.ones(5)), ("real.npz", "ids", "mask")),
        (arrays(x=np.ones((5, 3))), ("float64[5, 3]", "float32[batch, 3]")),
        (arrays(ids=np.arange(5, dtype=np.int32)), ("int32[5]", "int64[batch]", "ids")),
        (arrays(x=np.ones(15, np.float32)), ("float32[15]", "float32[batch, 3]")),
        (arrays(x=np.ones((5, 4), np.float32)), ("float32[5, 4]", "float32[batch, 3]")),
        (arrays(ids=np.arange(6)), ("6", "5", "ids", "batch")),
        (arrays(batch=17), ("17", "dims.batch", "2", "16")),
        (arrays(batch=1), ("1", "dims.batch", "2", "16")),
    ],
    ids=["a name too few", "a name too many", "float", "integer", "rank", "fixed dim", "two sizes", "above", "below"],
)  # fmt: skip
def test_data_of_another_signature_is_refused(tmp_path, given_arrays, facts, golden):
    np.savez(tmp_path / "real.npz", **given_arrays)
    with pytest.raises(DataDoesNotFit) as caught:
        sample_grid.build_grid(project(TWO, {"batch": {"min": 2, "max": 16}}, folder=tmp_path, data="real.npz"))
    golden(render_error(caught.value), "error[data-does-not-fit]", f"{tmp_path}/package.yaml:1: parity.data", *facts)


def damaged(path):
    """An .npz whose middle was overwritten."""
    np.savez_compressed(path, x=np.arange(999.0))
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)


def bytes_inside(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"hello")


@pytest.mark.parametrize(
    ("name", "write", "facts"),
    [
        ("no.npz", lambda path: None, ()),
        ("no.safetensors", lambda path: None, ()),
        ("folder.npz", Path.mkdir, ()),
        ("empty.npz", Path.touch, ()),
        ("text.npz", lambda path: path.write_text("x: 1"), ()),
        ("cut.npz", lambda path: path.write_bytes(b"PK\x03\x04"), ()),
        ("damaged.npz", damaged, ()),
        ("cut.safetensors", lambda path: path.write_bytes(b"{}"), ()),
        ("objects.npz", lambda path: np.savez(path, x=np.array([None])), ()),
        ("one.npy", lambda path: np.save(path, np.ones(3)),
         ("np.savez(file, name=array)",)),
        ("bytes.npz", bytes_inside, ("x",)),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_named_arrays_is_refused(tmp_path, name, write, facts):
    write(tmp_path / name)
    with pytest.raises(DataDoesNotFit) as caught:
        sample_grid.build_grid(project({"x": [3]}, folder=tmp_path, data=name))
    mentions(caught.value.why, name, *facts)
    assert caught.value.where == f"{tmp_path}/package.yaml:1: parity.data"
