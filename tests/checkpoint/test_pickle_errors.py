"""Pickles are examined without being executed."""

import collections
import io
import pickle
import zipfile

import torch
from hypothesis import given
from hypothesis import strategies as st

from packager.checkpoint import pickle_errors

NAMED = {"collections.Counter": collections.Counter, "io.BytesIO": io.BytesIO, "zipfile.ZipFile": zipfile.ZipFile}


@given(
    names=st.lists(st.sampled_from(sorted(NAMED)), min_size=1, max_size=6),
    texts=st.lists(st.text(max_size=5), max_size=4),
    protocol=st.integers(1, 5),
)
def test_every_global_is_found_in_any_protocol_even_if_its_name_is_memoized(tmp_path_factory, names, texts, protocol):
    path = tmp_path_factory.mktemp("pickled") / "one.pkl"
    path.write_bytes(pickle.dumps([texts, [NAMED[name] for name in names], names, texts], protocol))
    expected = {pickle.dumps(NAMED[name], 0).decode()[1:].split("\np")[0].replace("\n", ".") for name in names}
    allowed = {"collections.Counter"}  # of a library whose names torch allows
    unsafe = pickle_errors.find_unsafe_globals(path, "", zipped=False)
    assert set(unsafe) == expected - allowed


def test_the_reason_of_torch_is_reported_without_its_advice(tmp_path):
    path = tmp_path / "best.pt"
    torch.save({"weight": torch.ones(3)}, path)
    advice = "Weights only load failed. Re-run with weights_only=False.\n"
    for text, cause in [
        (f"{advice}WeightsUnpickler error: \n\nstack is empty\n\nCheck the documentation", "stack is empty"),
        (f"{advice}WeightsUnpickler error: stack is empty", "stack is empty"),
        ("a first line\nand a second", "a first line"),
        ("", "UnpicklingError"),
    ]:
        assert pickle_errors.explain_load_error(path, pickle.UnpicklingError(text), zipped=True) == cause
