"""No mutation of a file that others wrote crashes its parser, keeps it busy, or passes as what was sealed.

The whole run is `make fuzz`. The laws hold for any input, so Hypothesis may look for its own.
"""

import json
import logging

import pytest
from fuzz import seeds
from fuzz.mutations import mutate
from fuzz.run import Report, check_once, check_seeds, fuzz
from fuzz.targets import ChangeAccepted, Target
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = (
    "archive", "folder", "resealed", "sums", "signature", "parity-record", "golden", "onnx-wire", "onnx-inspect",
    "exported-program", "safetensors", "torch", "dcp-metadata", "dcp-chunks", "piece-index", "shard-index", "manifest",
    "npz", "request",
)  # fmt: skip
JSON = ("resealed", "signature", "parity-record", "exported-program", "piece-index", "shard-index")

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return seeds.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def targets(world):
    return {target.name: target for target in seeds.make_targets(world)}


@pytest.fixture(autouse=True)
def _silent():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def describe(report):
    return "\n".join(f"{content[:200]!r}: {problem}" for content, problem in report.finds)


def test_every_target_is_tested(targets):
    assert tuple(targets) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_seed_is_accepted_as_it_is(name, targets, world):
    check_seeds(targets[name], world)


@pytest.mark.parametrize("name", NAMES)
def test_mutations_are_refused_or_harmless(name, targets, world):
    report = fuzz(targets[name], world, 200, seed=1)
    assert report.outcomes.total() == 200
    assert report.finds == [], describe(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_mutations_are_refused_or_harmless(name, targets, world):
    report = fuzz(targets[name], world, 2000, seed=2)
    assert report.outcomes.total() == 2000
    assert report.finds == [], describe(report)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(random=st.randoms(use_true_random=False))
def test_whatever_hypothesis_mutates_is_refused_or_harmless(name, random, targets, world):
    content = mutate(random.choice(targets[name].seeds), random, targets[name].seeds)
    report = Report()
    check_once(targets[name], world, content, report)
    assert report.finds == [], describe(report)


@pytest.mark.parametrize("name", JSON)
@settings(max_examples=25)
@given(value=values)
def test_any_json_is_refused_or_harmless(name, value, targets, world):
    line = b"config.json\n" if name == "resealed" else b""
    report = Report()
    check_once(targets[name], world, line + json.dumps(value).encode(), report)
    assert report.finds == [], describe(report)


def test_a_mutation_follows_from_its_seed(targets, world):
    first, second = (fuzz(targets["sums"], world, 50, seed=3) for _ in range(2))
    assert first.outcomes == second.outcomes
    assert len(first.outcomes) > 1


def test_a_crash_and_an_accepted_change_are_finds(world):
    def crash(_world, content):
        if len(content) != 4:
            raise ZeroDivisionError

    def accept(_world, content):
        if content != b"seed":
            raise ChangeAccepted

    for check, name in ((crash, "ZeroDivisionError"), (accept, "ChangeAccepted")):
        report = fuzz(Target("broken", (b"seed",), check), world, 100, seed=0)
        assert report.finds
        assert report.outcomes[f"FIND {name}"] == len(report.finds)
