"""Mutation testing: `verify` refuses every bundle in which an output is off by more than ten noise floors."""

import shutil

import architectures
import bundles
import numpy as np
import onnx
import pytest
import scripts
import zoo
from architectures import ARCHITECTURES
from mutations import MUTATIONS
from oracle import OnnxOracle, Oracle, Session, draw, floors, noise, smalls

import packager
from packager.bundle import layout
from packager.runtime.torchscript_backend import TorchScriptBackend

FEW = [(architectures.CONVNET, "optimized"), (architectures.LSTM, "as exported")]
ALL = [(architecture, level) for architecture in ARCHITECTURES for level in bundles.LEVELS]
OF_LIBRARIES = [model for model in zoo.ARCHITECTURES if model.name.startswith("transformers-")]
UNSTORED = pytest.mark.xfail(strict=True, reason="the bundle's 10 MB of evidence have no case with the largest token")
SCRIPTED = [architectures.RESNET, architectures.BERT, architectures.LSTM, architectures.UNET, architectures.DETECTOR]


def identifiers(values):
    return [f"{architecture.name}, {level}" for architecture, level in values]


def survivors(architecture, bundle, model, oracle, most):
    """Return the mutants that `verify` passes, with the effect of each; the bundle is changed."""
    assert packager.verify(bundle).parity["onnx"] == "pass"
    passing = []
    for mutation in MUTATIONS:
        for mutant in mutation.apply(model, architecture.examples, most):
            bundles.put(bundle, mutant.model)
            if not bundles.is_refused(packager.verify(bundle)):
                passing.append((mutant, oracle.effect(mutant.model)))
    return passing


def missed(passing):
    """Return a line for each survivor that must be found."""
    return "".join(
        f"\n  {mutant}: {effect.floors:.3g} noise floors, {effect.where}"
        for mutant, effect in passing
        if effect.must_be_found
    )


@pytest.mark.parametrize(("architecture", "level"), FEW, ids=identifiers(FEW))
def test_a_mutant_at_a_location_of_each_kind_is_found(architecture, level, shared, onnx_of, tmp_path):
    bundle = bundles.copy(shared(architecture, level), tmp_path / "copy", fallback=False)
    assert missed(survivors(architecture, bundle, *onnx_of(architecture, level), most=1)) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "level"), ALL, ids=identifiers(ALL))
def test_every_mutant_that_is_ten_noise_floors_off_on_some_valid_input_is_found(
    architecture, level, shared, onnx_of, tmp_path
):
    bundle = bundles.copy(shared(architecture, level), tmp_path / "copy", fallback=False)
    assert missed(survivors(architecture, bundle, *onnx_of(architecture, level), most=3)) == ""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(model, id=model.name, marks=[UNSTORED] if model.name == "transformers-lfm2" else [])
        for model in OF_LIBRARIES
    ],
)
def test_a_mutant_at_a_location_of_each_kind_is_found_in_a_model_of_a_library(architecture, shared, tmp_path):
    original = shared(architecture, "optimized")
    bundle = bundles.copy(original, tmp_path / "copy", fallback=False)
    oracle = OnnxOracle(architecture, original, rows=64)
    model = onnx.load(original / layout.ONNX)
    assert missed(survivors(architecture, bundle, model, oracle, most=1)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_what_ships_computes_what_was_exported(architecture, shared, onnx_of):
    optimized, oracle = onnx_of(architecture, "optimized")[0], onnx_of(architecture, "as exported")[1]
    # Not by its declared signature: a dim that nobody named may have another name.
    effect = oracle.oracle.effect(Session(optimized.SerializeToString()).run)
    assert effect.floors < 10, f"{effect.floors:.3g} noise floors, {effect.where}"


@pytest.mark.slow
def test_every_mutation_fits_some_architecture_and_changes_a_copy_alone(onnx_of):
    fitting = set()
    for architecture, level in ALL:
        model = onnx_of(architecture, level)[0]
        before = model.SerializeToString()
        for mutation in MUTATIONS:
            for mutant in mutation.apply(model, architecture.examples, 2):
                assert mutant.model.SerializeToString() != before, mutant
                fitting.add(mutation.name)
        assert model.SerializeToString() == before
    assert [mutation.name for mutation in MUTATIONS if mutation.name not in fitting] == []


def test_the_names_of_mutations_are_unique():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *zoo.ARCHITECTURES], ids=lambda model: model.name)
def test_the_sizes_of_the_examples_stay_within_the_limits_and_differ_where_these_allow_it(architecture):
    first, second = architecture.examples
    dims = {dim for spec in architecture.inputs.values() for dim in spec["shape"] if isinstance(dim, str)}
    assert set(first) == set(second) == dims
    for name, limits in architecture.dims.items():
        assert limits["min"] <= first[name] <= limits["max"] and limits["min"] <= second[name] <= limits["max"]
        assert first[name] != second[name] or limits["min"] == limits["max"] or first[name] == limits["min"]


def test_a_bundle_that_is_sealed_again_without_a_change_passes(shared, tmp_path):
    bundle = bundles.copy(shared(*FEW[0]), tmp_path / "copy")
    bundles.put(bundle, onnx.load(bundle / layout.ONNX))
    report = packager.verify(bundle, trust_program=True)
    assert report.ok
    assert report.parity == {"onnx": "pass", "torchscript": "pass"}


# -- TorchScript ----------------------------------------------------------------------------


def script_survivors(architecture, bundle, tmp_path):
    """Return the mutants of model.ts that `verify` passes, with the effect of each."""
    config = packager.load(bundle).config
    inputs = [(spec["name"], spec["dtype"]) for spec in config["inputs"]]
    outputs = [spec["name"] for spec in config["outputs"]]

    def run(path, optimize=config["artifacts"]["torchscript"]["optimize_for_inference"]):
        return TorchScriptBackend(path, inputs=inputs, output_names=outputs, optimize=optimize).run

    original = shutil.copy(bundle / layout.TORCHSCRIPT, tmp_path / "original.ts")
    oracle = Oracle(list(draw(architecture)), noise(bundle), run(original), [run(original, False)])
    assert packager.verify(bundle, trust_program=True).parity["torchscript"] == "pass"
    count, passing = 0, []
    for mutant in scripts.mutants(original, bundle / layout.TORCHSCRIPT):
        count += 1
        bundles.reseal(bundle)
        report = packager.verify(bundle, trust_program=True)
        assert report.parity["onnx"] == "pass"
        if not bundles.is_refused(report, "torchscript"):
            passing.append((mutant, oracle.effect(run(bundle / layout.TORCHSCRIPT))))
    assert count > len(scripts.CHANGES)
    return passing


def test_a_torchscript_mutant_is_found(shared, tmp_path):
    bundle = bundles.copy(shared(architectures.CONVNET, "optimized"), tmp_path / "copy")
    assert missed(script_survivors(architectures.CONVNET, bundle, tmp_path)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SCRIPTED, ids=lambda architecture: architecture.name)
def test_every_torchscript_mutant_that_is_ten_noise_floors_off_is_found(architecture, shared, tmp_path):
    bundle = bundles.copy(shared(architecture, "optimized"), tmp_path / "copy")
    assert missed(script_survivors(architecture, bundle, tmp_path)) == ""


# -- the oracle -----------------------------------------------------------------------------


def test_the_oracle_measures_in_noise_floors_of_the_element_and_its_neighbourhood():
    expected = np.array([1.0, 2.0, 4.0, 8.0], np.float32)
    actual = expected + np.array([0.0, 0.0, 0.0, 1.0], np.float32)
    assert floors(expected, actual, noise=0.01, small=2.0).tolist() == pytest.approx([0, 0, 0, 1 / (0.01 * (8 + 2))])


def test_what_counts_as_small_is_a_lower_quartile_and_no_mask_or_zero_counts():
    plain = np.arange(1.0, 102.0, dtype=np.float32)
    masked = np.concatenate([plain, np.zeros(50, np.float32), np.full(50, -1e9, np.float32)])
    assert smalls([plain]) == [26.0]
    assert smalls([masked]) == [26.0]
    assert smalls([plain > 5]) == [0.0]  # flags must agree exactly
    assert smalls([plain, plain / 1000]) == [26.0, pytest.approx(0.05125)]  # alone, the second has 0.026


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (np.array([1.0, np.nan]), np.array([1.0, 2.0])),
        (np.array([1.0, 2.0]), np.array([1.0, np.inf])),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([True, False]), np.array([True, True])),
    ],
)
def test_a_nan_an_infinity_and_a_wrong_integer_are_infinitely_far(expected, actual):
    assert floors(expected, actual, noise=1.0, small=1.0).tolist() == [0.0, np.inf]


def test_rows_on_which_good_evaluations_disagree_are_left_aside():
    def run(feed):
        return {"y": feed["x"]}

    def again(feed):
        return {"y": feed["x"] + np.array([[0, 0], [0, 1e-3]], np.float32)}  # the second row is ill conditioned

    inputs = [{"x": np.array([[1, 2], [3, 4]], np.float32)}]
    oracle = Oracle(inputs, {"y": 1e-6}, run, [again])
    assert oracle.left_aside == 1
    assert oracle.effect(lambda feed: {"y": feed["x"] * np.array([[1], [2]], np.float32)}).floors == 0.0
    assert oracle.effect(lambda feed: {"y": feed["x"] * np.array([[2], [1]], np.float32)}).must_be_found


def test_the_original_itself_has_no_effect_and_one_that_does_not_run_an_infinite_one(onnx_of):
    model, oracle = onnx_of(*FEW[0])
    assert oracle.effect(model).floors == 0.0
    del model.graph.node[-1]
    assert oracle.effect(model).floors == np.inf
