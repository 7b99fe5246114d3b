"""Artifacts that cannot be loaded or run fail the check, with one line of the library's message as the reason."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from packager.parity.numerics.compare import ElementTolerance
from packager.parity.numerics.verdict import ReferenceCase
from packager.runtime.check import check_onnx, get_error_line

CPU = ("CPUExecutionProvider",)


def addition(path):
    """Write a model that adds two vectors of any sizes, which fails if they are different."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xyz"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "y"], ["z"])], "addition", values[:2], values[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def case(left, right):
    """Return a case of two vectors of ones, whose sum is 2 everywhere."""
    inputs = {"x": np.ones(left, np.float32), "y": np.ones(right, np.float32)}
    return ReferenceCase("000", inputs, {"z": np.full(left, 2, np.float32)}, {"z": ElementTolerance(0.0, 0.0)})


@pytest.mark.parametrize("optimize", [True, False])
def test_a_model_that_computes_the_expected_outputs_passes(tmp_path, optimize):
    result = check_onnx(addition(tmp_path / "model.onnx"), [case(3, 3)], CPU, optimize=optimize)
    assert (result.passed, result.loaded, result.reason) == (True, True, "")


def test_a_file_that_does_not_load_fails_and_its_folder_is_not_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    result = check_onnx(tmp_path / "model.onnx", [case(3, 3)], CPU)
    assert (result.passed, result.loaded) == (False, False)
    assert result.reason.startswith("onnxruntime: ")
    assert str(tmp_path) not in result.reason


def test_a_model_that_raises_an_exception_fails(tmp_path):
    result = check_onnx(addition(tmp_path / "model.onnx"), [case(3, 2)], CPU)
    assert (result.passed, result.loaded) == (False, True)
    assert result.reason.startswith("onnxruntime: ")


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("\n first \nsecond", "first"),
        ("Traceback of TorchScript (most recent call last):\n  line 3\nRuntimeError: shapes", "RuntimeError: shapes"),
        ("", "ValueError"),
        ("no /bundle/model.onnx", "no model.onnx"),
    ],
    ids=["first line", "TorchScript", "no message", "path"],
)
def test_the_line_that_says_what_happened_is_the_first_or_the_last_of_torchscript(message, line):
    assert get_error_line(ValueError(message), Path("/bundle")) == line
