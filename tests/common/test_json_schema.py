"""The check against a JSON Schema says no to whatever the model of the file says no to."""

import copy
import json

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from packager.bundle.records import BundleConfig
from packager.cli.schemas import generate_schema
from packager.common.json_schema import find_schema_problem

SCHEMA = generate_schema("config")
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.floats(allow_nan=False), st.text(max_size=3), st.just("a" * 64),
    st.sampled_from(["pass", "fail", "trace", "onnx"]), st.just([]), st.just({}), st.just([None]), st.just({"x": 1}),
)  # fmt: skip


def paths(value, path=()):
    """Yield the path of every value inside a JSON document."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*path, key))


@pytest.fixture(scope="module")
def config(built):
    return json.loads((built.bundle / "config.json").read_text())


def test_the_config_of_a_build_fits(config):
    assert find_schema_problem(config, SCHEMA) is None


@given(st.data())
def test_a_changed_config_fits_if_and_only_if_jsonschema_says_so(config, data):
    changed = copy.deepcopy(config)
    *folders, last = data.draw(st.sampled_from(sorted((path for path in paths(config) if path), key=str)))
    parent = changed
    for key in folders:
        parent = parent[key]
    action = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "replace":
        parent[last] = data.draw(VALUES)
    elif action == "remove":
        del parent[last]
    elif isinstance(parent, dict):
        parent["added"] = data.draw(VALUES)
    problem = find_schema_problem(changed, SCHEMA)
    agreed = (problem is None) == Draft202012Validator(SCHEMA).is_valid(changed)
    assert agreed or "got float" in problem  # jsonschema takes 1.0 for an integer; a config.json never has one
    if problem is None:
        BundleConfig.model_validate(changed, strict=True)


def test_the_field_is_named(config):
    config = copy.deepcopy(config)
    config["artifacts"]["onnx"]["nodes"] = "many"
    with pytest.raises(pydantic.ValidationError):
        BundleConfig.model_validate(config)
    assert find_schema_problem(config, SCHEMA) == "artifacts.onnx.nodes: expected integer, got str"
