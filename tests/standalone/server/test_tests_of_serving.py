"""The tests of tests/serving, with the executable in the place of `package serve`."""

import pytest
from serving_modules import load_module

_LEFT_OUT = {
    # models that are loaded and unloaded, and several versions of one
    "test_a_request_without_a_version_gets_the_highest", "test_a_model_is_unloaded_and_loaded_again",
    "test_only_bundles_named_at_the_start_are_loaded", "test_a_model_is_loaded_without_changes",
    "test_a_load_that_fails_leaves_the_model_in_place", "test_a_model_that_was_replaced_is_freed_at_once",
    "test_models_are_loaded_and_unloaded",
    # shared memory
    "test_the_same_objects_are_used_with_and_without_shared_memory", "test_shared_memory_has_limits",
    # limits that have no option
    "test_the_bodies_of_all_requests_are_bounded_together", "test_too_many_connections_are_turned_away",
    # functions of Python
    "test_chunks_are_decoded_wherever_they_are_cut", "test_remembered_heads_are_bounded",
    "test_paths_are_decoded_once", "test_any_bytes_are_a_head_or_refused",
    # two models in one server
    "test_the_asynchronous_client_asks_for_everything_else",
}  # fmt: skip


def _take(name):
    module = load_module(name)
    for key, value in vars(module).items():
        if key.startswith("test_") and key not in _LEFT_OUT:
            assert key not in globals(), key
            globals()[key] = value
    return module


_take("test_infer")
_take("test_service")
_take("test_tritonclient")
client = load_module("test_tritonclient").client
regions = load_module("test_tritonclient").regions
connect = _take("test_http_protocol").connect


@pytest.fixture
def versions():
    pytest.skip("an executable has one version")
