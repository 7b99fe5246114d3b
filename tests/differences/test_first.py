"""The description of the first difference between two versions of a file."""

import json
import shutil
import zipfile

import numpy as np
import onnx
import pytest
import safetensors.numpy
from messages import mentions
from onnx import helper, numpy_helper
from projects import python

from packager.differences import find_first_difference


@pytest.fixture
def first(tmp_path):
    """Return a function that describes the first difference between two contents of a file."""

    def first(file, *contents):
        for side, content in zip("ab", contents, strict=True):
            path = tmp_path / side / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                path.write_bytes(content)
        return find_first_difference(tmp_path / "a", tmp_path / "b", file)

    return first


@pytest.mark.parametrize(
    ("before", "after", "facts"),
    [
        (b"one\ntwo\n", b"one\n2\n", ("2", "two")),
        (b"one\n", b"one\ntwo\n", ("2", "two")),
        (b"", b"one\n", ("1", "one")),
        (b"one\r\n", b"one\n", ("1", "one\\r")),
        (b"one\n", b"one", ("3", "0x0a")),
        (b"caf\xc3\xa9", b"caf\xc3\xa8", ("1",)),
        (b"caf\xe9", b"caf\xe8", ("3", "0xe9", "0xe8")),
        (b"\0one\n", b"\0two\n", ("1", "0x6f", "0x74")),
        (b"\0one\n", b"\0on", ("3", "0x65")),
        (b"a\n  b\n", b"a\n  c\n", ("2",)),
        (b"a\n b\n", b"a\n  b\n", ("2",)),
        (b"x" * (1 << 20) + b"yz", b"x" * (1 << 20) + b"z", ("1", f"…{'x' * 20}yz", f"…{'x' * 20}z")),
        (b"same", b"same", ("same",)),
        (None, b"one", ()),
        (b"one", None, ()),
    ],
)
def test_text_differs_in_a_line_and_anything_else_in_a_byte(first, before, after, facts, golden):
    golden(first("assets/labels", before, after), *facts)


def dumped(value):
    return json.dumps(value, indent=2).encode()


@pytest.mark.parametrize(
    ("before", "after", "facts"),
    [
        (
            dumped({"tolerance": {"logits": {"rtol": 1.9e-06}}}), dumped({"tolerance": {"logits": {"rtol": 2.1e-06}}}),
            ("tolerance.logits.rtol", "1.9e-06", "2.1e-06"),
        ),
        (dumped({"a": 1, "b": 1}), dumped({"b": 2, "a": 2}), ("a", "1", "2")),
        (dumped({"a": 1}), dumped({}), ("a", "1")),
        (dumped(1), dumped(2), ("1", "2")),
        (dumped({"a": 1}), b'{"a": 1}', ("1", '{"a": 1}')),
    ],
)  # fmt: skip
def test_a_record_differs_in_a_field(first, before, after, facts, golden):
    golden(first("evidence/parity.json", before, after), *facts)


def tensors(**arrays):
    return safetensors.numpy.save({name: np.float32(values) for name, values in arrays.items()})


@pytest.mark.parametrize(
    ("before", "after", "facts"),
    [
        (tensors(a=[1, 2], b=[1]), tensors(a=[1, 2.5], b=[2]), ("1", "2", "0.5")),
        (tensors(a=[1], b=[1]), tensors(a=[1]), ()),
        (tensors(a=[1]), tensors(a=[1, 2]), ("F32[1]", "F32[2]")),
        (
            tensors(a=[1]), safetensors.numpy.save({"a": np.ones(1, np.float32)}, {"k": "v"}),
            ("metadata.k",),
        ),
    ],
)  # fmt: skip
def test_a_safetensors_file_differs_in_a_tensor(first, before, after, facts, golden):
    golden(first("evidence/golden.safetensors", before, after), *facts)


def test_an_unreadable_safetensors_file_differs_in_a_byte_with_the_reason(first):
    description = first("evidence/golden.safetensors", tensors(a=[1]), b"\0")
    mentions(description, "0", "0x38", "0x00")


def archive(path, **entries):
    with zipfile.ZipFile(path, "w") as written:
        for name, content in entries.items():
            written.writestr(zipfile.ZipInfo(f"model/{name}"), content)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("before", "after", "facts"),
    [
        ({"code/m.py": "a\nb\n"}, {"code/m.py": "a\nc\n"}, ("code/m.py", "2")),
        ({"constants/0": b"\0\1"}, {"constants/0": b"\0\2"}, ("constants/0", "1", "0x01", "0x02")),
        ({"a": "", "b": ""}, {"b": ""}, ()),
        ({"a": "", "b": ""}, {"b": "", "a": ""}, ("36", "0x61", "0x62")),
    ],
)
def test_torchscript_differs_in_an_entry_of_its_archive(first, tmp_path, before, after, facts, golden):
    contents = [archive(tmp_path / "x.zip", **entries) for entries in (before, after)]
    golden(first("model.ts", *contents), *facts)


def model(*, pads=(0, 0, 1, 1), weight=(1, 2), name="/layer1/Conv", producer="packager"):
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], "/Relu"),
        helper.make_node("Conv", ["y", "fc.weight"], ["z"], name, pads=pads),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, [1])]
    weights = [numpy_helper.from_array(np.float32(weight), "fc.weight")]
    graph = helper.make_graph(nodes, "model", inputs, [helper.make_tensor_value_info("z", 1, [1])], weights)
    return helper.make_model(graph, producer_name=producer)


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"pads": (1, 1, 1, 1), "weight": (3, 4)}, ("1", "/layer1/Conv", "[0, 0, 1, 1]", "[1, 1, 1, 1]", "pads")),
        ({"name": "/other"}, ("1", "/layer1/Conv", "/other")),
        ({"producer": "b"}, ("producer_name",)),
        ({"weight": (1, 2.25)}, ("fc.weight", "1", "2", "0.25")),
        ({"weight": (1,)}, ("fc.weight", "float32[2]", "float32[1]")),
    ],
)
def test_an_onnx_model_differs_in_a_node_a_field_or_a_weight(first, changed, facts, golden):
    golden(first("model.onnx", model().SerializeToString(), model(**changed).SerializeToString()), *facts)


def test_an_unreadable_onnx_model_differs_in_a_byte(first, golden):
    golden(first("model.onnx", b"\x08\x01", b"\xff"), "0", "0x08", "0xff", "ValueError")


def test_a_file_of_external_weights_differs_in_a_weight(tmp_path, golden):
    for side, weight in (("a", [1, 2]), ("b", [1, 3])):
        (tmp_path / side).mkdir()
        path = tmp_path / side / "model.onnx"
        proto = model(weight=weight, name=f"/{side}")
        onnx.save(proto, path, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    description = find_first_difference(tmp_path / "a", tmp_path / "b", "model.onnx_data")
    golden(description, "fc.weight", "1", "2")
    (tmp_path / "b" / "model.onnx").unlink()
    description = find_first_difference(tmp_path / "a", tmp_path / "b", "model.onnx_data")
    mentions(description, "6", "0x00", "0x40", "FileNotFoundError")


def test_without_onnx_a_model_differs_in_a_byte_with_the_reason(tmp_path, golden):
    for side, content in (("a", model()), ("b", model(producer="Packager"))):
        (tmp_path / side).mkdir()
        (tmp_path / side / "model.onnx").write_bytes(content.SerializeToString())
    code = (
        "import sys; sys.modules['onnx'] = None\nfrom pathlib import Path\n"
        "from packager.differences import find_first_difference\n"
        "print(find_first_difference(Path(sys.argv[1]), Path(sys.argv[2]), 'model.onnx'))"
    )
    process = python(code, tmp_path / "a", tmp_path / "b")
    golden(process.stdout, "4", "0x70", "0x50")


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_path_that_leaves_the_bundle_is_refused(tmp_path, file, golden):
    with pytest.raises(ValueError) as caught:
        find_first_difference(tmp_path, tmp_path, file)
    golden(caught.value, file)


def test_the_files_of_real_bundles(built, bundle, golden):
    config = json.loads((bundle / "config.json").read_text())
    config["dims"]["batch"]["max"] = 32
    (bundle / "config.json").write_text(json.dumps(config, indent=2))
    assert find_first_difference(built.bundle, bundle, "config.json") == "dims.batch.max: 16 and 32"
    with zipfile.ZipFile(bundle / "model.ts") as read, zipfile.ZipFile(bundle / "copy", "w") as written:
        for name in read.namelist():
            written.writestr(name, read.read(name).replace(b"torch.relu(input0)", b"torch.sigmoid(input0)"))
    shutil.move(bundle / "copy", bundle / "model.ts")
    golden(
        find_first_difference(built.bundle, bundle, "model.ts"),
        "code/__torch__/packager/export/___torch_mangle_0.py",
        "7",
        "input1",
        "torch.relu(input0)",
        "torch.sigmoid(input0)",
    )
