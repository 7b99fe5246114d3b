"""Why a stage ran, in one line for each input that changed."""

from packager.builder.incremental.explain import Explanation, explain
from packager.builder.incremental.store import CacheKey


def explain_stage(inputs, before, *, stage="onnx", cached=(), cache_used=True):
    """Explain one stage; `before` are its inputs in the last build, or None if there was none."""
    last_inputs = {} if before is None else {stage: before}
    (explanation,) = explain([CacheKey(stage, inputs)], frozenset(cached), last_inputs, cache_used=cache_used)
    return str(explanation)


def test_a_stage_that_the_cache_has_is_cached_whatever_changed():
    assert explain_stage({"a": "1"}, {"a": "2"}, cached=["onnx"]) == "onnx: cached"


def test_every_changed_added_and_removed_input_is_named_with_both_values():
    before = {"export.opset": "20", "gone": "1", "same": "x"}
    inputs = {"same": "x", "export.opset": "18", "added": "2"}
    assert explain_stage(inputs, before) == "onnx: export.opset: 20 → 18; gone: 1 → none; added: none → 2"


def test_strings_are_shown_without_quotes_and_other_values_as_json():
    before = {"a": '"auto"', "b": '{"x": 1}', "c": "torch 2"}
    inputs = {"a": '"script"', "b": '{"x": 2}', "c": "torch 3"}
    assert explain_stage(inputs, before) == 'onnx: a: auto → script; b: {"x": 1} → {"x": 2}; c: torch 2 → torch 3'


def test_digests_are_abbreviated_quoted_or_not():
    before, inputs = {"checkpoint": "a" * 64, "pin": f'"{"b" * 64}"'}, {"checkpoint": "c" * 64, "pin": "null"}
    assert explain_stage(inputs, before) == f"onnx: checkpoint: {'a' * 12}… → {'c' * 12}…; pin: {'b' * 12}… → null"


def test_a_build_without_a_cache_says_so_even_if_inputs_changed():
    assert explain_stage({"a": "1"}, {"a": "2"}, cache_used=False) == "onnx: the cache was not used"


def test_a_first_build_has_nothing_to_compare_with():
    assert explain_stage({"a": "1"}, None) == "onnx: no earlier build is known"


def test_a_stage_whose_inputs_are_the_same_has_left_the_cache():
    assert explain_stage({"a": "1"}, {"a": "1"}) == "onnx: nothing changed, but it is no longer in the cache"


def test_parity_that_is_measured_again_with_the_reference_says_so():
    reason = "the reference was measured again, with the same result"
    assert explain_stage({"a": "1"}, {"a": "1"}, stage="onnx parity") == f"onnx parity: {reason}"
    assert explain_stage({"a": "1"}, {"a": "1"}, stage="onnx parity", cached=["reference"]) == (
        "onnx parity: nothing changed, but it is no longer in the cache"
    )


def test_every_stage_is_explained_in_order_with_its_own_inputs():
    keys = [CacheKey("reference", {"a": "1"}), CacheKey("onnx", {"a": "1"}), CacheKey("bundle", {"a": "1"})]
    last_inputs = {"onnx": {"a": "2"}, "bundle": {"a": "3"}}
    assert explain(keys, frozenset({"reference"}), last_inputs, cache_used=True) == (
        Explanation("reference", True, ()),
        Explanation("onnx", False, ("a: 2 → 1",)),
        Explanation("bundle", False, ("a: 3 → 1",)),
    )
