"""Exporting a module with torch.export: general in every dynamic dim, saved to the same bytes every time."""

import os
import zipfile

import numpy as np
import pytest
import torch
from messages import mentions
from projects import ROOT, manifest, python

from packager.export import exported_program
from packager.export.exporters import ExporterFailed
from packager.project.manifest import load_manifest
from packager.runtime.exported_program_backend import ExportedProgramBackend

HERE = __file__.rpartition("/")[0]
INPUTS = {"x": {"dtype": "float32", "shape": ["batch", 4]}}


class Net(torch.nn.Module):
    """A net whose operators branch on sizes, with a buffer, a constant that is neither, and tied weights."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm = torch.nn.BatchNorm1d(4)
        self.rnn = torch.nn.LSTM(4, 3, batch_first=True)
        self.offset = torch.arange(4.0)

    def forward(self, x):
        y = self.norm(self.second(self.first(x))) + self.offset
        return {"y": y, "steps": self.rnn(y[:, None].expand(-1, 3, -1))[0]}


class Branch(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


def make_project(folder, inputs=INPUTS, **sections):
    folder.mkdir(exist_ok=True)
    return load_manifest(manifest(folder, inputs=inputs, **sections))


def saved(module, folder, path, **sections):
    project = make_project(folder, **sections)
    program = exported_program.export(project, module, (torch.rand(2, 4),))
    exported_program.save(program, path, folder)
    return path.read_bytes()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def test_processes_with_other_hash_seeds_and_folders_give_the_same_bytes(tmp_path, net):
    first = saved(net, tmp_path, tmp_path / "here.pt2")
    saved(torch.nn.Linear(4, 4), tmp_path, tmp_path / "between.pt2")
    assert saved(net, tmp_path, tmp_path / "again.pt2") == first
    code = (
        "import sys, pathlib, torch\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import test_exported_program as test\n"
        "torch.manual_seed(0)\n"
        "test.saved(test.Net().eval(), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[2]) / 'there.pt2')"
    )
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    variables = {"PYTHONHASHSEED": "77", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT}/tests", "TZ": "Asia/Tokyo"}
    done = python(code, HERE, folder, cwd=folder, env={**os.environ, **variables})
    assert done.returncode == 0, done.stderr
    assert (folder / "there.pt2").read_bytes() == first


def test_the_archive_holds_nothing_of_the_process_it_was_made_in(tmp_path, net):
    content = saved(net, tmp_path, tmp_path / "net.pt2")
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert all(name.startswith("model/") for name in names)
        assert "model/.data/serialization_id" not in names
        assert archive.read("model/data/sample_inputs/model.pt") == b""
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    for trace in (str(tmp_path), "test_exported_program", "site-packages", "stack_trace"):
        assert trace.encode() not in content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pt2", "package.yaml"]


@pytest.mark.parametrize("dims", [{}, {"batch": {"min": 1, "max": 64}}, {"batch": {"min": 2, "max": 33}}])
def test_a_saved_program_computes_the_same_at_every_size_of_a_dim(tmp_path, net, dims):
    saved(net, tmp_path, tmp_path / "net.pt2", dims=dims)
    backend = ExportedProgramBackend(tmp_path / "net.pt2", inputs=[("x", "float32")], output_names=["renamed", "steps"])
    limit = dims.get("batch", {})
    for count in {limit.get("min", 1), 2, 5, 33}:
        x = torch.rand(count, 4)
        actual = backend.run({"x": x.numpy()})
        assert list(actual) == ["renamed", "steps"]
        with torch.inference_mode():
            for array, expected in zip(actual.values(), net(x).values(), strict=True):
                torch.testing.assert_close(torch.from_numpy(array), expected)
    if "max" in limit:
        with pytest.raises(RuntimeError, match="shape"):
            backend.run({"x": torch.rand(limit["max"] + 1, 4).numpy()})


def test_a_branch_on_data_is_refused_with_the_users_line(tmp_path):
    with pytest.raises(ExporterFailed) as caught:
        exported_program.export(make_project(tmp_path), Branch(), (torch.rand(2, 4),))
    assert "GuardOnDataDependentSymNode" in caught.value.cause


class FixedLength(torch.nn.Module):
    """torch.export unrolls a recurrent layer, so the number of steps becomes fixed."""

    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def test_a_dim_that_would_become_fixed_is_refused_and_named(tmp_path):
    project = make_project(tmp_path, {"x": {"dtype": "float32", "shape": ["batch", "length", 4]}})
    with pytest.raises(ExporterFailed) as caught:
        exported_program.export(project, FixedLength(), (torch.rand(2, 5, 4),))
    mentions(caught.value.cause, "length", "constant", "5")


class Joined(torch.nn.Module):
    def forward(self, x, y):
        return torch.cat([x, y], 1)[: x.shape[0] // 2 * 2]


def test_two_inputs_that_share_a_dim_hold_no_conditions_in_python(tmp_path):
    inputs = {name: {"dtype": "float32", "shape": ["batch", 4]} for name in ("x", "y")}
    program = exported_program.export(make_project(tmp_path, inputs), Joined(), (torch.rand(2, 4),) * 2)
    program._guards_code = ["L['inputs'][1].size()[0] == L['inputs'][0].size()[0]"]  # as torch adds to some programs
    exported_program.save(program, tmp_path / "net.pt2", tmp_path)
    specs = [("x", "float32"), ("y", "float32")]
    backend = ExportedProgramBackend(tmp_path / "net.pt2", inputs=specs, output_names=["z"])
    arrays = {name: torch.rand(7, 4).numpy() for name in inputs}
    assert backend.run(arrays)["z"].shape == (6, 8)
    with pytest.raises(RuntimeError):
        backend.run({**arrays, "y": torch.rand(6, 4).numpy()})


class Constants(torch.nn.Module):
    """A module that takes numbers from tensors which it makes of constants, and writes to one of them."""

    def __init__(self):
        super().__init__()
        self.strides = np.array([2, 3])

    def forward(self, x):
        written = torch.tensor([5, 7])
        written[0] = 1
        left, right = torch.from_numpy(self.strides).tolist()
        return torch.nn.functional.pad(x, [left, right]) * int(torch.tensor([2, 9])[1]) + written.sum()


def test_numbers_in_tensors_that_the_module_makes_of_constants_are_known(tmp_path):
    from torch._subclasses import fake_tensor

    limit = fake_tensor.CONSTANT_NUMEL_LIMIT
    program = exported_program.export(make_project(tmp_path), Constants(), (torch.rand(2, 4),))
    for rows in (1, 3):
        x = torch.rand(rows, 4)
        torch.testing.assert_close(program.module(check_guards=False)(x)[0], Constants()(x))
    assert limit == fake_tensor.CONSTANT_NUMEL_LIMIT


def test_a_number_that_follows_from_an_input_is_not_fixed(tmp_path):
    class Repeats(torch.nn.Module):
        def forward(self, x):
            return x.repeat(int(torch.tensor([2, 9])[0]) + int(x.sum()), 1)

    program = exported_program.export(make_project(tmp_path), Repeats(), (torch.ones(2, 4),))
    for x in (torch.ones(2, 4), torch.ones(3, 4)):
        torch.testing.assert_close(program.module(check_guards=False)(x)[0], Repeats()(x))
