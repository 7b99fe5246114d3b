"""Builds whose exported graph is wrong: the diagnosis, and the repro folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from messages import mentions
from projects import project, python

import packager
from packager.errors import ParityFailed, render_error

BRANCH = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            {then}
        return self.right(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.block = Block()
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.block(self.first(x))))
"""

# An exporter's own extension point, with a formula that is nearly right.
SWISH = """
import torch
from torch import nn


@torch.library.custom_op("diagnose_test::swish", mutates_args=())
def swish(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


@swish.register_fake
def _(x):
    return torch.empty_like(x)


def symbolic(g, x):
    return g.op("Mul", x, g.op("HardSigmoid", x))


torch.onnx.register_custom_op_symbolic("diagnose_test::swish", symbolic, 20)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(swish(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 16)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)
"""

# What people write to work around an exporter.
EXPORTING = """
import torch
from torch import nn
from torch.nn import functional as F


class Gelu(nn.Module):
    def forward(self, x):
        if torch.compiler.is_exporting():
            return x * torch.sigmoid(1.702 * x)
        return F.gelu(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.activation = Gelu()
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.activation(self.first(x)))
"""

FUSED = """
import torch
from torch import nn


class Head(nn.Module):
    def forward(self, x):
        if torch.jit.is_tracing():
            return torch.softmax(x, -1)
        x = torch.sigmoid(x)
        return torch.tanh(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.head = Head()

    def forward(self, x):
        return self.head(self.first(x))
"""


def fail_build(tmp_path, text, exporter="torchscript"):
    """The error of a build, and what `show.py` prints in a different folder."""
    settings = {"export": {"exporter": exporter}, "torchscript": {"method": "none"}}
    path = project(tmp_path / "p", text, **settings)
    with pytest.raises(ParityFailed) as caught:
        packager.build(path, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()
    repro = tmp_path / "repro" / "net-1.0.0"
    assert sorted(os.listdir(repro)) == ["show.py", "subgraph.onnx", "values.npz"]
    assert os.listdir(repro.parent) == ["net-1.0.0"]
    done = subprocess.run([sys.executable, repro / "show.py"], capture_output=True, text=True, cwd="/", check=True)
    return caught.value, done.stdout


def operators_of(tmp_path):
    return [node.op_type for node in onnx.load(tmp_path / "repro/net-1.0.0/subgraph.onnx").graph.node]


def lines_of(error):
    (problem,) = error.problems
    return problem.message.splitlines()


def test_a_fixed_branch_is_found_and_the_module_that_should_not_run_is_named(tmp_path, golden):
    error, shown = fail_build(tmp_path, BRANCH.format(then="return self.left(x)"))
    _, first, difference, branch, repro = lines_of(error)
    golden(first, "linear", "/model/block/left/Gemm", "(Gemm)", "block.right", "model.py:15")
    golden(branch, "block.left")
    golden(repro, f"{tmp_path}/repro/net-1.0.0/show.py")
    assert error.problems[0].where == "model.py:15"
    index, actual, expected = re.search(r"(\[.*\]) \D*?(-?\d\S*), \D*?(-?\d\S*),", difference).groups()
    golden(shown.splitlines()[1], index=index, expected=expected, actual=actual)
    assert operators_of(tmp_path) == ["Gemm"]


def test_an_operation_that_a_fixed_branch_adds_is_found(tmp_path, golden):
    error, shown = fail_build(tmp_path, BRANCH.format(then="x = x * 2"))
    golden(lines_of(error)[1], "/model/block/Mul", "(Mul)", "linear", "block.right", "model.py:15")
    assert operators_of(tmp_path) == ["Constant", "Mul"]
    mentions(shown, "PyTorch", "float32")


def test_an_operation_that_a_fixed_branch_leaves_out_is_found(tmp_path, golden):
    error, shown = fail_build(tmp_path, BRANCH.format(then="x = x * 2").replace("> 0", "< 0"))
    golden("\n".join(lines_of(error)[1:3]), "mul", "block", "model.py:14", "/model/block/right/Gemm", "(Gemm)")
    assert operators_of(tmp_path) == ["Identity"]
    assert "onnxruntime" in shown.splitlines()[1]


def test_an_exporter_with_a_wrong_formula_is_found_in_its_first_use(tmp_path, golden):
    error, shown = fail_build(tmp_path, SWISH)
    golden(lines_of(error)[1], "/model/0/Mul", "(Mul)", "diagnose_test::swish", "layers.0", "model.py:31")
    assert operators_of(tmp_path) == ["HardSigmoid", "Mul"]
    mentions(shown, "PyTorch", "onnxruntime")


def test_a_formula_for_exporters_only_is_found_in_the_graph_of_torch_export(tmp_path, golden):
    error, shown = fail_build(tmp_path, EXPORTING, "torch-export")
    golden(lines_of(error)[1], "node_mul_7", "(Mul)", "2", "gelu", "activation", "model.py:11")
    assert operators_of(tmp_path) == ["Mul", "Sigmoid", "Mul"]
    mentions(shown, "PyTorch", "onnxruntime")


def test_a_fault_that_stands_for_several_operations_has_their_module_and_no_line(tmp_path, golden):
    error, _ = fail_build(tmp_path, FUSED)
    golden(lines_of(error)[1], "/model/head/Softmax", "tanh", "in module head")
    assert error.problems[0].where is None


def test_a_line_with_control_flow_is_not_blamed_for_a_fault_elsewhere(tmp_path, golden):
    text = (
        BRANCH.format(then="x = x * 1")
        .replace("self.first(x)", "torch.exp(self.first(x))")
        .replace("torch.exp", "(torch.exp if not torch.jit.is_tracing() else torch.tanh)")
    )
    error, _ = fail_build(tmp_path, text)
    golden(lines_of(error)[1], "/model/Tanh", "exp", "model.py:26")
    assert error.problems[0].where == "model.py:26"
    golden(error.hint, "model.py:13")
    path = project(tmp_path / "q", text, torchscript={"method": "trace"})
    with pytest.raises(ParityFailed) as caught:
        packager.build(path, tmp_path / "dist")
    trace, _ = caught.value.problems
    mentions(trace.message, "model.py:13")
    assert trace.where is None


@pytest.mark.slow
def test_a_second_failure_replaces_the_folder_but_no_folder_that_is_not_a_repro(tmp_path):
    fail_build(tmp_path, BRANCH.format(then="x = x * 2"))
    fail_build(tmp_path, BRANCH.format(then="return self.left(x)"))
    assert operators_of(tmp_path) == ["Gemm"]
    folder = tmp_path / "repro" / "net-1.0.0"
    (folder / "show.py").unlink()
    with pytest.raises(ParityFailed) as caught:
        packager.build(tmp_path / "p" / "package.yaml", tmp_path / "dist")
    mentions(render_error(caught.value), folder)
    assert sorted(os.listdir(folder)) == ["subgraph.onnx", "values.npz"]


def test_the_folder_contains_no_trace_of_the_machine(tmp_path):
    fail_build(tmp_path, BRANCH.format(then="return self.left(x)"))
    for path in (tmp_path / "repro").rglob("*.*"):
        if path.is_file():
            content = path.read_bytes()
            for trace in (b"/tmp/", str(Path.home()).encode() + b"/", b"site-packages"):
                assert trace not in content


def test_the_script_has_ten_lines_and_needs_neither_torch_nor_this_package(tmp_path):
    fail_build(tmp_path, BRANCH.format(then="return self.left(x)"))
    script = tmp_path / "repro/net-1.0.0/show.py"
    code = [line for line in script.read_text().splitlines()[1:] if line and "import" not in line]
    assert len(code) <= 10
    blocked = "import sys, runpy; sys.modules.update(torch=None, onnx=None, packager=None); runpy.run_path(sys.argv[1])"
    assert python(blocked, script).returncode == 0
