"""Tracing, scripting and saving a module: the same bytes every time."""

import math
import os
import re
import runpy
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from projects import ROOT, python
from torch.nn import functional

from packager.export import torchscript
from packager.export.exporters import ExporterFailed

HERE = __file__.rpartition("/")[0]


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())

    def forward(self, x):
        return self.layers(x)


class Net(torch.nn.Module):
    """Two blocks of one class, whose names torch.jit mangles to keep them apart."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x):
        return {"sum": self.first(x) + self.second(x), "max": x.amax((1, 2, 3))}


class Branch(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x - 1


def saved(module, path, fold=True, method="trace"):
    example = (torch.rand(2, 1, 8, 8),)
    folder = path.parent
    if method == "trace":
        program = torchscript.trace(module, None, example, folder)
    else:
        program = torchscript.script(module, folder)
    torchscript.save(program, path, fold=fold, folder=folder)
    return path.read_bytes()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("fold", [True, False])
def test_two_saves_in_one_process_give_the_same_bytes(tmp_path, net, fold):
    first = saved(net, tmp_path / "first.ts", fold)
    saved(Block().eval(), tmp_path / "between.ts")  # moves the counter of mangled names
    assert saved(net, tmp_path / "second.ts", fold) == first


def test_two_scripts_in_one_process_give_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    block = Block().eval()
    first = saved(block, tmp_path / "first.ts", method="script")
    assert saved(block, tmp_path / "second.ts", method="script") == first


def test_processes_with_other_hash_seeds_and_folders_give_the_same_bytes(tmp_path, net):
    first = saved(net, tmp_path / "here.ts")
    code = (
        "import sys, pathlib, torch\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import test_torchscript as test\n"
        "torch.manual_seed(0)\n"
        "test.saved(test.Net().eval(), pathlib.Path(sys.argv[2]))"
    )
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "77",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT}/tests",
        "TZ": "Asia/Tokyo",
    }
    done = python(code, HERE, folder / "there.ts", cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    assert (folder / "there.ts").read_bytes() == first


def test_the_archive_holds_nothing_of_the_process_it_was_made_in(tmp_path, net):
    content = saved(net, tmp_path / "net.ts")
    with zipfile.ZipFile(tmp_path / "net.ts") as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert all(name.startswith("model/") for name in names)
        assert not [name for name in names if name.endswith((".debug_pkl", "serialization_id"))]
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.testzip() is None
    assert str(tmp_path).encode() not in content
    assert b"test_torchscript.py" not in content
    assert not list(tmp_path.glob("*.raw"))


def test_tensors_are_aligned_so_that_they_can_be_mapped(tmp_path, net):
    saved(net, tmp_path / "net.ts")
    with zipfile.ZipFile(tmp_path / "net.ts") as archive, (tmp_path / "net.ts").open("rb") as stream:
        for entry in archive.infolist():
            stream.seek(entry.header_offset + 26)
            name, extra = (int.from_bytes(stream.read(2), "little") for _ in range(2))
            assert (entry.header_offset + 30 + name + extra) % 64 == 0


@pytest.mark.parametrize("fold", [True, False])
def test_a_saved_program_loads_and_computes_the_same(tmp_path, net, fold):
    saved(net, tmp_path / "net.ts", fold)
    program = torch.jit.load(tmp_path / "net.ts")
    for count in (1, 5):
        x = torch.rand(count, 1, 8, 8)
        outputs = program(x)
        torch.testing.assert_close(outputs[0], net(x)["sum"])
        assert torch.equal(outputs[1], net(x)["max"])


class HalfScriptable(torch.nn.Module):
    def forward(self, x):
        return self.refused(x)

    def refused(self, x, **options):
        return x


def test_a_script_fails_for_the_same_reason_every_time(tmp_path):
    causes = []
    for _ in range(3):
        with pytest.raises(ExporterFailed) as caught:
            torchscript.script(torch.nn.Sequential(torch.nn.Linear(4, 4), HalfScriptable()), tmp_path)
        causes.append(caught.value.cause)
    assert causes[0].startswith("NotSupportedError") and causes == causes[:1] * 3


def test_a_script_that_fails_leaves_the_bytes_of_others_as_they_are(tmp_path):
    expected = saved(Branch(), tmp_path / "before.ts", method="script")
    with pytest.raises(ExporterFailed):
        torchscript.script(HalfScriptable(), tmp_path)
    assert saved(Branch(), tmp_path / "after.ts", method="script") == expected


def test_a_saved_script_keeps_its_branch(tmp_path):
    saved(Branch().eval(), tmp_path / "branch.ts", method="script")
    program = torch.jit.load(tmp_path / "branch.ts")
    assert program(torch.ones(2)).tolist() == [2.0, 2.0]
    assert program(-torch.ones(2)).tolist() == [-2.0, -2.0]


BRANCH = """import torch


class Branch(torch.nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x - 1
"""


def test_a_trace_names_the_branches_that_it_fixes(tmp_path):
    (tmp_path / "branch.py").write_text(BRANCH)
    module = runpy.run_path(str(tmp_path / "branch.py"))["Branch"]()
    program = torchscript.trace(module, None, (torch.ones(2),), tmp_path)
    assert program.specialized.user_lines == ("branch.py:6",)
    assert program.method == "trace"


@pytest.mark.parametrize("imported", ["real", "link"])
def test_a_branch_is_named_in_a_folder_that_is_reached_over_a_link(tmp_path, imported):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    (tmp_path / "real/branch.py").write_text(BRANCH)
    module = runpy.run_path(str(tmp_path / imported / "branch.py"))["Branch"]()
    assert torchscript.trace(module, None, (torch.ones(2),), tmp_path / "link").specialized.user_lines == (
        "branch.py:6",
    )


SAVING = """
import gc, sys
from pathlib import Path
import torch
from packager.export import torchscript
folder = Path(sys.argv[1])
# 67 MB, folded at each save
net = torch.nn.Sequential(torch.nn.Conv2d(1024, 1024, 4), torch.nn.BatchNorm2d(1024)).eval()
program = torchscript.trace(net, None, (torch.ones(1, 1024, 4, 4),), folder)

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

torchscript.save(program, folder / "model.ts", fold=True, folder=folder)
before = resident()
for _ in range(3):
    torchscript.save(program, folder / "model.ts", fold=True, folder=folder)
print(resident() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc to read the memory from")
def test_frozen_weights_are_freed_once_they_are_saved(tmp_path):
    done = python(SAVING, tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 67_000_000  # three copies without


def test_outputs_are_picked_and_ordered_by_name(tmp_path, net):
    program = torchscript.trace(net, ["max", "sum"], (torch.rand(2, 1, 8, 8),), tmp_path)
    assert [output.ndim for output in program.module(torch.rand(2, 1, 8, 8))] == [1, 4]


class Unscriptable(torch.nn.Module):
    def forward(self, x):
        return x * sum(value for value in [1.0, 2.0] if type(value).__name__ == "float")


def test_a_module_that_cannot_be_compiled_says_why_and_where(tmp_path):
    with pytest.raises(ExporterFailed) as caught:
        torchscript.script(Unscriptable(), Path(HERE))
    assert "\n" not in caught.value.cause
    assert caught.value.where.startswith("test_torchscript.py:")


class Raising(torch.nn.Module):
    def forward(self, x):
        raise ValueError("not today")


def test_a_module_that_raises_says_what_and_where(tmp_path, golden):
    with pytest.raises(ExporterFailed) as caught:
        torchscript.trace(Raising(), None, (torch.ones(2),), Path(HERE))
    golden(caught.value.cause, "ValueError")
    line = Raising.forward.__code__.co_firstlineno + 1
    assert caught.value.where == f"test_torchscript.py:{line}"


# -- decisions ------------------------------------------------------------------------------


class Applying(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


DECIDING = {
    "topk": lambda x: x.topk(2).indices,
    "argmax": lambda x: x.argmax(-1),
    "max along a dim": lambda x: x.max(-1).indices,
    "sort": lambda x: x.sort().indices,
    "cummax": lambda x: x.cummax(-1).indices,
    "a pool's indices": lambda x: F.max_pool2d(x[None], 2, return_indices=True)[1],
    "an adaptive pool's indices": lambda x: F.adaptive_max_pool2d(x[None], 2, return_indices=True)[1],
    "a comparison": lambda x: (x > 0).float(),
    "a comparison by its long name": lambda x: torch.greater_equal(x, 0.0).float(),
    "a comparison in place": lambda x: x.clone().gt_(0),
    "not": lambda x: torch.logical_not(x),
    "round": lambda x: x.round(),
    "round in place": lambda x: x.clone().round_(),
    "to an integer": lambda x: x.long(),
    "to a bool": lambda x: x.bool(),
    "a rounded quotient": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "a remainder": lambda x: x % 0.3,
    "quantization": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255),
    "a threshold": lambda x: F.threshold(x, 0.5, 7.0),
    "the nearest pixel": lambda x: F.grid_sample(x[None, None], x[:4, :2].reshape(1, 2, 2, 2), mode="nearest"),
}
SMOOTH = {
    "relu": lambda x: F.relu(x),
    "gelu": lambda x: F.gelu(x),
    "softmax": lambda x: x.softmax(-1),
    "a pool": lambda x: F.max_pool2d(x[None], 2),
    "an adaptive pool": lambda x: F.adaptive_max_pool2d(x[None], 2),
    "the largest": lambda x: x.max(),
    "a quotient": lambda x: x / 0.3,
    "clamp": lambda x: x.clamp(0, 1),
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
    "a comparison of integers": lambda x: x * (torch.arange(8) > 3),
    "integers to a bool": lambda x: x * torch.arange(8).bool(),
}


@pytest.mark.parametrize("name", [*DECIDING, *SMOOTH])
def test_a_program_tells_whether_it_decides_something_by_floats(name):
    module = Applying({**DECIDING, **SMOOTH}[name]).eval()
    assert torchscript.trace(module, None, (torch.randn(8, 8),), Path(HERE)).has_discrete_decisions == (
        name in DECIDING
    )


class Loop(torch.nn.Module):
    def forward(self, x):
        for _ in range(3):
            if x.dim() > 1:
                x = x.argmax(-1).float()
        return x


@pytest.mark.parametrize(("module", "decides"), [(Branch(), True), (Block(), False), (Loop(), True)])
def test_a_decision_inside_a_block_of_a_script_counts(module, decides):
    assert torchscript.script(module.eval(), Path(HERE)).has_discrete_decisions == decides


def test_a_branch_that_a_trace_fixed_is_a_decision(tmp_path):
    (tmp_path / "branch.py").write_text(BRANCH)
    module = runpy.run_path(str(tmp_path / "branch.py"))["Branch"]()
    assert torchscript.trace(module, None, (torch.ones(2),), tmp_path).has_discrete_decisions


@pytest.mark.parametrize(
    ("make", "rounded"),
    [
        (lambda x: functional.interpolate(x, scale_factor=0.7, mode="bilinear"), True),
        (lambda x: torch.nn.Upsample(scale_factor=(2.0, 1.4))(x), True),
        (lambda x: torch.arange(0, x.shape[2] * 0.1, 0.1), True),
        (lambda x: functional.interpolate(x, scale_factor=0.5, mode="bilinear"), False),
        (lambda x: torch.nn.Upsample(scale_factor=2)(x), False),
        (lambda x: functional.interpolate(x, size=(5, 7)), False),
        (lambda x: x * torch.arange(0, 0.75, 0.1), False),
        (lambda x: torch.arange(0, x.shape[2] * 0.25, 0.25), False),
    ],
)
def test_a_size_computed_with_a_number_that_float32_rounds_is_named_by_its_line(tmp_path, make, rounded):
    class Net(torch.nn.Module):
        def forward(self, x):
            return make(x)

    specialized = torchscript.trace(Net().eval(), None, (torch.randn(1, 2, 8, 8),), tmp_path).specialized
    line = make.__code__.co_firstlineno
    assert specialized.rounded_size_lines == ((f"test_torchscript.py:{line}",) if rounded else ())


def test_a_script_names_a_step_that_float32_rounds(tmp_path):
    (tmp_path / "steps.py").write_text(BRANCH.replace("return x - 1", "return torch.arange(0, x.shape[0] * 0.1, 0.1)"))
    module = runpy.run_path(str(tmp_path / "steps.py"))["Branch"]()
    assert torchscript.script(module, tmp_path).specialized.rounded_size_lines == ("steps.py:8",)


def test_a_line_is_found_in_a_folder_with_a_space_in_its_name():
    source = "/home/a user/my project/model.py(20): forward\n/lib/site-packages/torch/nn/modules/module.py(1): call\n"
    assert torchscript._find_user_line(source) == "model.py:20"


ROUNDING = """import math
import torch


class Frames(torch.nn.Module):
    def forward(self, x):
        frames = math.ceil((x.shape[-1] - 3) / FACTOR) + math.floor(x.shape[-1] * 2 / 3)
        return torch.nn.functional.pad(x, (0, frames * 4 - x.shape[-1]))
"""


@pytest.mark.parametrize(("factor", "lines"), [("4", ()), ("0.7", ("frames.py:7",)), ("0.5", ())])
def test_a_trace_keeps_the_sizes_that_forward_rounds_where_it_is_asked_to(tmp_path, factor, lines):
    (tmp_path / "frames.py").write_text(ROUNDING.replace("FACTOR", factor))
    module = runpy.run_path(str(tmp_path / "frames.py"))["Frames"]()
    fixed = torchscript.trace(module, None, (torch.ones(2, 9),), tmp_path)
    assert fixed.fixes_rounded_sizes
    assert fixed.specialized.user_lines == ("frames.py:7",)
    kept = torchscript.trace(module, None, (torch.ones(2, 9),), tmp_path, keep_rounded_sizes=True)
    assert not kept.fixes_rounded_sizes
    assert kept.specialized.user_lines == ()
    assert kept.specialized.rounded_size_lines == lines
    for size in (3, 8, 9, 10, 31):
        x = torch.rand(2, size)
        torch.testing.assert_close(kept.module(x)[0], module(x))
    assert fixed.module(torch.rand(2, 31))[0].shape != module(torch.rand(2, 31)).shape


@pytest.mark.parametrize(
    ("expression", "reported"),
    [
        ("length // 3 * 1.1", True),
        ("20 - length * 1.1", True),
        ("math.ceil(length / 2) * 1.1", True),
        ("length / 7 * 14", True),  # 29 gives 59 in float64 and 58 in float32
        ("(length / 7 + 1) * 14", True),
        ("length / 7 * 4", False),
        ("length / 4 * 7", False),
        ("length * 14 / 7", False),
        ("math.ceil(length / 7) * 14 / 3", False),
    ],
)
def test_sizes_that_float32_may_round_to_others_are_reported(tmp_path, expression, reported):
    text = re.sub("frames = .*", f"length = x.shape[-1]\n        frames = math.ceil({expression})", ROUNDING)
    (tmp_path / "frames.py").write_text(text)
    module = runpy.run_path(str(tmp_path / "frames.py"))["Frames"]()
    kept = torchscript.trace(module, None, (torch.ones(2, 9),), tmp_path, keep_rounded_sizes=True)
    scripted = torchscript.script(module, tmp_path)
    for program in (kept, scripted):
        assert program.specialized.rounded_size_lines == (("frames.py:8",) if reported else ())


def test_rounding_a_tensor_gives_a_number_again_after_a_trace(tmp_path):
    for keep in (False, True):
        torchscript.trace(torch.nn.Linear(2, 2).eval(), None, (torch.ones(1, 2),), tmp_path, keep_rounded_sizes=keep)
        assert type(math.ceil(torch.tensor(1.5))) is int
        assert not hasattr(torch.Tensor, "__ceil__")
