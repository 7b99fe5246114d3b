"""The tables of docs/parity.md, made of results that are kept for each architecture."""

import importlib
import math
from pathlib import Path

import pytest

from benchmarks.models.catalogue import all_models
from benchmarks.models.mutated import KINDS, MUTATED, candidates, limits

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def results(monkeypatch):
    """The module benchmarks/parity_results.py, which imports its neighbours as a script does."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("parity_results")


def example(results, name, refused_by):
    versions = {"machine": "x86_64", "packager": "0.1.0 (abc)", "torch": "2.13.0", "onnxruntime": "1.31.1"}
    mutants = [
        results.MutantResult(f"{name}, optimized", "an output dropped", "y", math.inf, "it does not load", refused_by),
        results.MutantResult(f"{name}, optimized", "epsilon → 1e-3", "norm", 0.0, "nowhere", []),
    ]
    runs = [results.RunResult(f"{name}, optimized", "TorchScript", ["Olive"])]
    return results.Results(name, versions, mutants, runs, [])


def test_results_are_read_as_they_were_written(results, tmp_path):
    written = example(results, "bert", ["package verify", "Optimum"])
    written.write(tmp_path / "parity" / "bert.json")
    assert results.read(tmp_path / "parity" / "bert.json") == written


def test_the_tables_count_the_architectures_that_have_results(results):
    some = [example(results, "bert", ["package verify"]), example(results, "gpt", ["Optimum"])]
    text = results.render("Results", "Small ones.", some, ["epsilon → 1e-3", "an output dropped"])
    assert "4 mutants of 2 graphs of 2 architectures: bert, gpt. 2 of them must be found" in text
    assert "| package verify | 1 | 50.0% | 0 | 0.0% |" in text
    assert "| Olive | 0 | 0.0% | 2 | 100.0% |" in text
    assert "| an output dropped | 2 | 1 |" in text
    missed = text.partition("### Missed by package verify")[2].partition("###")[0]
    assert "| gpt, optimized | an output dropped | y | inf | it does not load |" in missed and "bert" not in missed
    assert "Of those that pass, 2 change nothing on any input" in text


def test_ten_models_of_at_least_five_libraries_are_mutated_as_many_of_each_kind_as_the_rule_says():
    models = {model.name: model for model in all_models()}
    names = iter(MUTATED)
    for kind, count in KINDS.items():
        drawn = [next(names) for _ in range(count)]
        order = [model.name for model in candidates(kind)]
        assert sorted(drawn, key=order.index) == drawn, kind
        assert len({models[name].library for name in drawn}) == count
    assert next(names, None) is None and len(MUTATED) == 10
    assert len({models[name].library for name in MUTATED}) >= 5


def test_the_dims_of_a_mutated_model_stay_near_their_minimum_and_within_its_limits():
    for model in (model for model in all_models() if model.name in MUTATED):
        for name, limit in limits(model).items():
            declared = model.dims.get(name)
            assert limit["min"] == (declared.min if declared else 1)
            assert limit["min"] <= limit["max"] <= max(12, 2 * limit["min"])
            assert declared is None or declared.max is None or limit["max"] <= declared.max
