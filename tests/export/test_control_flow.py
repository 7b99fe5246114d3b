"""The control flow that a trace fixes, by source line."""

import json
import sys

import numpy as np
import pytest
import torch
from projects import project, python

import packager
from packager.export import control_flow, torchscript
from packager.export.control_flow import SpecializedControlFlow

LAYERS = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Flatten()])
X, IDS = torch.randn(2, 4), torch.tensor([[1, 2, 3], [4, 5, 6]])


def trace(forward, *inputs):
    class Net(torch.nn.Module):
        def forward(self, *tensors):
            return forward(*tensors)

    with control_flow.record_control_flow() as get_control_flow:
        traced = torch.jit.trace(Net(), inputs, check_trace=False)
    return get_control_flow(torchscript._count_slice_bounds(traced.inlined_graph))


@pytest.mark.parametrize(
    ("forward", "inputs"),
    [
        (lambda x: x * 2 if x.sum() > 0 else x, (X,)),
        (lambda x: x * int(x.shape[0]), (X,)),
        (lambda x: x * x.mean().item(), (X,)),
        (lambda ids: ids * 2 if 777 in ids else ids, (IDS,)),
        (lambda x: x * float(np.asarray(x).max()), (X,)),
        (lambda x, y: x if torch.equal(x, y) else y, (X, X + 1)),
        (lambda x, y: x if x.equal(y) else y, (X, X + 1)),
        (lambda x, y: x if torch.allclose(x, y) else y, (X, X + 1)),
        (lambda x, y: x if x.allclose(y) else y, (X, X + 1)),
        (lambda x: x * x.nbytes, (X,)),
        (lambda ids: ids * len(range((ids == 2).sum())), (IDS,)),
        (lambda ids: ids * [1, 2, 3][(ids == 2).sum()], (IDS,)),
        (lambda ids: LAYERS[(ids == 2).sum()](ids), (IDS,)),
    ],
    ids=[
        "if",
        "size",
        "item",
        "in",
        "numpy",
        "equal",
        "its equal",
        "allclose",
        "its allclose",
        "nbytes",
        "count",
        "index",
        "layer",
    ],
)
def test_a_branch_or_a_number_from_data_is_recorded_by_the_users_line(forward, inputs):
    assert trace(forward, *inputs) == SpecializedControlFlow(
        user_lines=(f"test_control_flow.py:{forward.__code__.co_firstlineno}",)
    )


def test_control_flow_that_depends_on_no_data_is_not_recorded():
    assert trace(lambda x: x.reshape(x.shape[0], -1) * 2 if x.dim() > 1 else x, X) == SpecializedControlFlow()


@pytest.mark.parametrize(
    "forward",
    [
        lambda x, ids: x[: ids.size(0)],
        lambda x, ids: x[:, 1 : ids.size(1), None],
        lambda x, ids: x[ids.size(0) - 1 : ids.size(1) - 1] + x[: ids.size(0) // 2],
        lambda x, ids: torch.cat([part[: ids.size(0)] for part in (x, x + 1)]),
    ],
)
def test_a_slice_up_to_a_size_is_not_recorded_since_the_trace_keeps_the_size(forward):
    assert trace(forward, X, IDS) == SpecializedControlFlow()


@pytest.mark.parametrize(
    "forward",
    [
        lambda x, ids: sum([x, x + 1, x + 2][: ids.size(1)]),
        lambda x, ids: x[: ids.size(0)] + sum([x, x + 1, x + 2][: ids.size(1)]),
        lambda x, ids: x[: ids.size(0)] * len(range(ids.size(1))),
    ],
)
def test_a_list_that_is_sliced_to_a_size_is_recorded_even_beside_a_tensor_that_is(forward):
    line = f"test_control_flow.py:{forward.__code__.co_firstlineno}"
    assert trace(forward, X, IDS) == SpecializedControlFlow(user_lines=(line,))


def test_a_check_that_only_raises_is_not_recorded():
    def checked(x):
        assert x.shape[0] > 0
        if x.shape[1] > 9:
            raise ValueError
        return x

    assert trace(checked, X) == SpecializedControlFlow()
    assert (
        trace(torch.nn.GroupNorm(2, 4).requires_grad_(False), X) == SpecializedControlFlow()
    )  # torch checks the number of values in a group


def test_the_patched_functions_are_restored():
    before = [torch.equal, torch.Tensor.equal, torch.allclose, torch.Tensor.nbytes, torch.Tensor.__index__]
    with pytest.raises(ZeroDivisionError), control_flow.record_control_flow():
        raise ZeroDivisionError
    assert [torch.equal, torch.Tensor.equal, torch.allclose, torch.Tensor.nbytes, torch.Tensor.__index__] == before
    assert not {"equal", "allclose", "nbytes", "__index__"} & set(vars(torch.Tensor))


def test_a_line_of_an_installed_package_is_kept_apart_from_a_users_line(tmp_path, monkeypatch):
    for folder in (tmp_path / "lib/site-packages", tmp_path / "src"):
        (folder / "pieces").mkdir(parents=True)
        (folder / "pieces/__init__.py").write_text("def apply(x):\n    return x * 2 if x.sum() > 0 else x\n")
        monkeypatch.syspath_prepend(folder)
        from pieces import apply

        specialized = trace(apply, X)
        del sys.modules["pieces"]
        kind = "user_lines" if folder.name == "src" else "library_lines"
        assert specialized == SpecializedControlFlow(**{kind: ("pieces/__init__.py:2",)})


def test_the_users_lines_are_described_one_by_one_and_those_of_libraries_together(golden):
    first = SpecializedControlFlow(("a.py:1",), ("lib/b.py:2",))
    merged = first.merge(SpecializedControlFlow(("a.py:1", "a.py:3"), ("lib/c.py:4",), ("a.py:5",)))
    golden("\n".join(merged.describe()), "a.py:1", "a.py:3", "lib/b.py:2", "lib/c.py:4", "a.py:5")


def test_the_module_imports_without_torch():
    code = "import sys; from packager.export import control_flow; assert 'torch' not in sys.modules"
    assert python(code).returncode == 0


@pytest.mark.slow
def test_a_branch_on_a_shape_that_torch_export_fixes_silently_is_reported(tmp_path):
    text = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(x)
        return y * 2 if 40 < x.shape[0] < 60 else y
"""
    for method in ("none", "script"):
        settings = {"export": {"exporter": "torch-export"}, "torchscript": {"method": method}}
        path = project(tmp_path / method, text, dims={"batch": {"max": 64}}, **settings)
        built = packager.build(path, tmp_path / "dist", force=True)
        parity = json.loads((built.bundle / "evidence/parity.json").read_text())
        assert any("model.py:13" in item for item in parity["not_checked"])
