"""A model refers to no file but its own weights: the executable refuses what `packager.load` does, in its words."""

import json

import numpy as np
import onnx
import pytest
from executables import ask, write_both
from onnx import helper
from projects import update_digests, with_external_weights

import packager


def change_entry(key, value):
    def change(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
        kept = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
        del tensor.external_data[:]
        for name, text in kept.items():
            if text is not None:
                tensor.external_data.add(key=name, value=text)

    return change


def set_type(model):
    next(tensor for tensor in model.graph.initializer if tensor.external_data).data_type = 8


def set_shape(model):
    next(tensor for tensor in model.graph.initializer if tensor.external_data).dims[0] = -1


def repeat(model):
    model.graph.initializer.add().CopyFrom(next(t for t in model.graph.initializer if t.external_data))


def hide_in_attribute(model):
    tensor = onnx.TensorProto()
    tensor.CopyFrom(next(t for t in model.graph.initializer if t.external_data))
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


CHANGES = {
    "none": lambda model: None,
    "elsewhere": change_entry("location", "/etc/passwd"),
    "above": change_entry("location", "../model.onnx_data"),
    "without a location": change_entry("location", None),
    "beyond the end": change_entry("offset", "1000000000"),
    "no number": change_entry("offset", "0x10"),
    "a negative offset": change_entry("offset", "-1"),
    "not aligned": change_entry("offset", "1"),
    "a different length": change_entry("length", "4"),
    "an odd dtype": set_type,
    "an impossible shape": set_shape,
    "twice": repeat,
    "in an attribute": hide_in_attribute,
}


@pytest.mark.parametrize("name", CHANGES)
def test_weights_elsewhere_are_refused_with_the_same_words(built, runner, tmp_path, name):
    bundle = with_external_weights(built.bundle, tmp_path / "bundle")
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    CHANGES[name](model)
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    update_digests(bundle)
    archive, executable = write_both(runner, bundle, tmp_path / "both")
    np.savez(tmp_path / "x.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    status, answer = ask(executable, "run", "--input", tmp_path / "x.npz")
    if name == "none":
        assert status == 0
        return
    with pytest.raises(packager.PackagerError) as caught:
        packager.load(archive, fallback=False)
    expected = json.loads(json.dumps(caught.value.as_json()).replace(str(archive), str(executable)))
    assert answer == {"error": expected}
    assert status == caught.value.exit_status


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x3a\x05location", b"\x3a\x7flocation", b"location" * 100])
def test_what_is_no_model_is_refused(built, runner, tmp_path, content):
    bundle = with_external_weights(built.bundle, tmp_path / "bundle")
    (bundle / "model.onnx").write_bytes(content)
    update_digests(bundle)
    archive, executable = write_both(runner, bundle, tmp_path / "both")
    np.savez(tmp_path / "x.npz", image=np.zeros((1, 1, 8, 8), np.float32))
    status, answer = ask(executable, "run", "--input", tmp_path / "x.npz")
    with pytest.raises(packager.PackagerError) as caught:
        packager.load(archive, fallback=False)
    assert status == caught.value.exit_status
    assert answer["error"]["code"] == caught.value.code
