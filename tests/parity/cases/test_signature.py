"""Two forward passes → the names, dtypes and shapes of the outputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.errors import OutputsUnsupported
from packager.parity.cases import signature
from packager.parity.cases.sample_grid import InputCase
from packager.parity.cases.signature import TensorSpec
from packager.project.manifest import Manifest


def case(**sizes):
    return InputCase("000", sizes, ("random",), {})


def outputs(first, second, *shapes, dtype="float32"):
    """Return the shapes of outputs that have one shape in the first case and a different one in the second."""
    names = [f"y{number}" for number in range(len(shapes))]
    left, right = (
        {name: np.zeros(pair[side], dtype) for name, pair in zip(names, shapes, strict=True)} for side in (0, 1)
    )
    return [spec.shape for spec in signature.infer_output_specs([(first, left), (second, right)])]


def test_inputs_are_those_of_the_manifest():
    manifest = Manifest.model_validate(
        {
            "schema": 1, "name": "n", "version": "1.0.0", "model": {"entry": "m:M"}, "checkpoint": {"path": "c"},
            "inputs": {
                "ids": {"dtype": "int64", "shape": ["batch", "length"], "range": [0, 9]},
                "bias": {"dtype": "bfloat16", "shape": []},
            },
        }
    )  # fmt: skip
    assert signature.make_input_specs(manifest) == (
        TensorSpec("ids", "int64", ("batch", "length")),
        TensorSpec("bias", "bfloat16", ()),
    )


def test_outputs_keep_their_names_dtypes_and_order():
    arrays = {"z": np.zeros(2, "float16"), "a": np.zeros((), "bool"), "m": np.zeros(2, "complex64")}
    assert signature.infer_output_specs([(case(), arrays), (case(), arrays)]) == (
        TensorSpec("z", "float16", (2,)),
        TensorSpec("a", "bool", ()),
        TensorSpec("m", "complex64", (2,)),
    )


def test_a_dim_that_stays_is_fixed_and_a_dim_that_follows_has_the_name():
    first, second = case(batch=2, length=3), case(batch=1, length=1)
    assert outputs(first, second, ((2, 3, 10), (1, 1, 10))) == [("batch", "length", 10)]


def test_dims_in_swapped_positions_are_distinguished():
    first, second = case(batch=2, length=3), case(batch=1, length=1)
    assert outputs(first, second, ((3, 2), (1, 1))) == [("length", "batch")]


@pytest.mark.parametrize(("size", "other"), [(6, 1), (4, 2), (5, 3), (3, 2)])
def test_a_dim_that_depends_on_more_than_one_named_dim_is_null(size, other):
    first, second = case(batch=2, length=3), case(batch=1, length=1)
    assert outputs(first, second, ((size,), (other,))) == [(None,)]


def test_a_dim_that_could_follow_either_of_two_names_is_null():
    assert outputs(case(a=2, b=2), case(a=1, b=1), ((2,), (1,))) == [(None,)]


def test_a_size_that_equals_a_dim_by_chance_is_fixed():
    assert outputs(case(batch=2), case(batch=1), ((2, 2), (1, 2))) == [("batch", 2)]


@pytest.mark.parametrize("shapes", [((2, 3), (3,)), ((2,), ())])
def test_an_output_with_a_rank_that_varies_is_refused_with_the_sizes(shapes, golden):
    with pytest.raises(OutputsUnsupported) as caught:
        outputs(case(batch=2), case(batch=1), shapes)
    first, second = (f"float32{list(shape)}" for shape in shapes)
    golden(caught.value.why, "y0", first, "batch=2", second, "batch=1")


def test_an_empty_dim_is_a_size_like_any_other():
    assert outputs(case(batch=2), case(batch=0), ((2, 0), (0, 0))) == [("batch", 0)]


SIZES = st.integers(2, 30)


@given(st.dictionaries(st.sampled_from("abcd"), SIZES, min_size=1), st.data())
def test_every_dim_is_identified_if_the_example_gives_each_a_different_size(sizes, data):
    unique = {name: size for name, size in sizes.items() if list(sizes.values()).count(size) == 1}
    first, second = case(**sizes), case(**dict.fromkeys(sizes, 1))
    dims = data.draw(st.lists(st.sampled_from([*unique, 1, 7]) if unique else st.just(7), max_size=5))
    left = tuple(sizes.get(dim, dim) for dim in dims)
    right = tuple(1 if dim in sizes else dim for dim in dims)
    assert outputs(first, second, (left, right)) == [tuple(dims)]
