"""The zoo's pure functions: the rule that says right or wrong, unseen inputs, the catalogue, and the page."""

import ast
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.models import report, rule, unseen
from benchmarks.models.catalogue import all_models
from benchmarks.models.project import manifest
from benchmarks.models.run import choose, is_failure
from benchmarks.models.sample import SAMPLE
from packager.project.manifest import Manifest

ONES = np.ones((2, 3), np.float32)


def test_an_error_within_sixteen_times_the_noise_is_right_and_beyond_is_wrong():
    exact = np.full((2, 3), 1.0)
    expected = (exact + 1e-4).astype(np.float32)
    near, far = (exact + 15e-4).astype(np.float32), (exact + 17e-4).astype(np.float32)
    assert rule.compare([near], [expected], [exact]).right
    assert not rule.compare([far], [expected], [exact]).right


def test_a_module_without_noise_gets_the_floor_relative_to_the_largest_element():
    expected = np.array([1000.0, 0.001], np.float32)
    exact = expected.astype(np.float64)
    assert rule.compare([expected + np.float32([0, 0.009])], [expected], [exact]).right
    assert not rule.compare([expected + np.float32([0, 0.011])], [expected], [exact]).right


@pytest.mark.parametrize(
    "actual",
    [
        ONES[:1],
        ONES.astype(np.float64),
        np.where(np.eye(2, 3, dtype=bool), np.nan, ONES).astype(np.float32),
        np.where(np.eye(2, 3, dtype=bool), np.inf, ONES).astype(np.float32),
    ],
    ids=["shape", "dtype", "NaN", "infinity"],
)
def test_another_shape_or_dtype_and_a_value_that_is_not_finite_are_wrong(actual):
    comparison = rule.compare([actual], [ONES], [ONES.astype(np.float64)])
    assert not comparison.right
    assert comparison.reason


def test_nan_in_the_same_places_is_right():
    expected = np.float32([np.nan, 1, -np.inf])
    assert rule.compare([expected.copy()], [expected], [expected.astype(np.float64)]).right
    assert not rule.compare([np.float32([1, np.nan, -np.inf])], [expected], [expected.astype(np.float64)]).right


def test_integers_agree_exactly_and_an_output_may_not_be_missing():
    indices = np.array([1, 2, 3])
    assert rule.compare([indices], [indices], None).right
    assert not rule.compare([np.array([1, 2, 4])], [indices], None).right
    assert not rule.compare([], [indices], None).right


def test_the_worst_output_decides():
    wrong = rule.compare([ONES, ONES * 2], [ONES, ONES], [ONES.astype(np.float64)] * 2)
    assert wrong.error == 1.0
    assert not wrong.right


def test_unseen_sizes_are_primes_that_no_case_of_the_build_had():
    built = [{"batch": size, "sequence": 5} for size in (1, 2, 3, 7)]
    sizes = unseen.choose_sizes({"batch": (1, None), "sequence": (1, 512)}, built)
    assert [case["batch"] for case in sizes] == [5, 11, 13]
    assert not {case["sequence"] for case in sizes} & {5}


@pytest.mark.parametrize("limits", [(4, 4), (1, 2), (0, 3), (100, 101)])
def test_unseen_sizes_stay_within_narrow_limits(limits):
    sizes = unseen.choose_sizes({"batch": limits}, [{"batch": limits[0]}])
    assert len(sizes) == len(unseen.KINDS)
    assert all(max(limits[0], 1) <= case["batch"] <= limits[1] for case in sizes)


@pytest.mark.parametrize("kind", unseen.KINDS)
@pytest.mark.parametrize(
    ("dtype", "limits"), [("float32", (-1, 1)), ("int64", (5, 9)), ("int64", (0, 2)), ("float32", (0, 255))]
)
def test_unseen_values_stay_within_the_declared_range(kind, dtype, limits):
    values = unseen.draw(kind, "x", dtype, [50, 40], limits)
    assert values.dtype == dtype
    assert values.shape == (50, 40)
    assert limits[0] <= values.min()
    assert values.max() < limits[1]
    assert len(np.unique(values)) > 1


@pytest.mark.parametrize("kind", unseen.KINDS)
def test_every_row_of_an_unseen_mask_begins_with_one(kind):
    values = unseen.draw(kind, "attention_mask", "int64", [20, 9], (0, 2))
    assert values[:, 0].all()
    assert not values.all()


def test_the_names_of_the_catalogue_are_unique_and_it_is_as_large_as_promised():
    names = [model.name for model in all_models()]
    assert len(set(names)) == len(names) >= 200


def test_the_sample_is_of_the_catalogue():
    assert set(SAMPLE) <= {model.name for model in all_models()}
    assert len(choose(all_models(), [], SAMPLE)) == len(SAMPLE) >= 10


def test_every_entry_is_a_manifest_and_a_source_that_defines_its_entry():
    for model in all_models():
        Manifest.model_validate(manifest(model))
        defined = {
            node.name for node in ast.parse(model.source).body if isinstance(node, ast.ClassDef | ast.FunctionDef)
        }
        assert model.entry in defined, model.name


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(SystemExit, match="no model or library matches 'resnet18'"):
        choose(all_models(), ["resnet18"], None)


@pytest.mark.parametrize(
    ("result", "failure"),
    [
        ({"outcome": "right"}, False),
        ({"outcome": "wrong"}, True),
        ({"outcome": "memory"}, True),
        ({"outcome": "refused", "code": "parity-failed"}, True),
        ({"outcome": "cannot be constructed"}, False),
    ],
)
def test_whatever_is_not_right_fails_the_sample(result, failure):
    assert is_failure(all_models()[0], result) is failure


def test_a_refusal_that_the_entry_expects_does_not_fail_the_sample():
    model = replace(all_models()[0], expected_refusal="not-repeatable")
    assert not is_failure(model, {"outcome": "refused", "code": "not-repeatable"})
    assert is_failure(model, {"outcome": "refused", "code": "parity-failed"})
    assert is_failure(model, {"outcome": "timeout"})


RIGHT = {
    "name": "timm-a", "library": "timm", "version": "1.0", "outcome": "right", "exporter": "torch-export",
    "fallback": "trace", "seconds": 12.0,
    "comparison": {"onnx": {"outcome": "right", "error": 2e-7}, "fallback": {"outcome": "right", "error": 0.0}},
    "by_hand": {"outcome": "right", "seconds": 8.0},
}  # fmt: skip
REFUSED = {
    "name": "x-b", "library": "x", "version": None, "outcome": "refused", "code": "parity-failed",
    "message": "the artifacts do not match\nSigmoid | differs", "by_hand": {"outcome": "right", "seconds": 8.0},
}  # fmt: skip
BROKEN = {
    "name": "x-c",
    "library": "x",
    "version": None,
    "outcome": "cannot be constructed",
    "message": "ImportError: y",
}


def test_the_page_counts_models_and_leaves_out_those_that_cannot_be_constructed():
    page = report.render([RIGHT, REFUSED, BROKEN], 300, "a processor", timings=True)
    assert "2 models of a catalogue of 300; **1 (50.0%) built and right**, 0 wrong, 1 without a bundle" in page
    assert "median 1.50 ×, largest 1.50 ×, over 1 models" in page
    assert "| timm-a | right | torch-export | trace | 2e-07 | 12.0 | 8.0 | 1.50 |" in page
    assert "| x-b | `parity-failed` | Sigmoid \\| differs | right |" in page
    assert "- x-c: ImportError: y" in page


def test_a_page_says_that_its_run_is_partial():
    assert "The run is partial" in report.render([RIGHT], 300, "a processor", timings=True)
    assert "The run is partial" not in report.render([RIGHT], 1, "a processor", timings=True)


def test_a_page_of_a_busy_machine_has_no_timings():
    page = report.render([RIGHT, REFUSED], 300, "a processor", timings=False)
    assert "seconds" not in page
    assert "12.0" not in page
    assert not re.search(r"median", page)


def test_a_later_result_takes_the_place_of_an_earlier_one_of_the_same_major_version():
    def line(version, outcome):
        return json.dumps({"name": "a", "library": "x", "version": version, "outcome": outcome})

    results = report.read_results([line("5.1", "wrong"), "", line("4.57", "refused"), line("5.2", "right")])
    assert [(result["version"], result["outcome"]) for result in results] == [("4.57", "refused"), ("5.2", "right")]
