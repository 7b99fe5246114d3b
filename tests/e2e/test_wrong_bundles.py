"""Modules that once led to a bundle that was wrong and said to be proven."""

import json
import runpy

import numpy as np
import pytest
import torch
from messages import carries
from projects import project

import packager
from packager import errors
from packager.builder.vet import vet

HEAD = """
import torch
from functools import partial
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
{constructor}

    def forward(self, {parameters}):
{forward}
"""

HOLDS_A_PARAMETER_TWICE = {
    "in a list": ("self.l = nn.Linear(4, 4); self.ws = [self.l.weight]", "return x @ self.ws[0].t()"),
    "before it was registered": (
        "p = nn.Parameter(torch.zeros(4)); self.p = p; self.ps = [p]",
        "return x + self.ps[0]",
    ),
    "as data of a buffer": (
        "self.l = nn.Linear(4, 4); self.register_buffer('v', self.l.weight.data, persistent=False)",
        "return x @ self.v.t()",
    ),
    "in a partial function": (
        "self.l = nn.Linear(4, 4); self.fn = partial(F.linear, weight=self.l.weight)",
        "return self.fn(x)",
    ),
    "in a closure": (
        "self.l = nn.Linear(4, 4); w = self.l.weight; self.fn = lambda x: x @ w.t()",
        "return self.fn(x)",
    ),
    "under two names": ("p = nn.Parameter(torch.zeros(4)); self.a = p; self.b = p", "return x * self.a + self.b"),
    "after a seed": ("torch.manual_seed(0); self.l = nn.Linear(4, 4); self.r = torch.randn(4, 4)", "return x @ self.r"),
    "a drawn list": (
        "torch.manual_seed(0); self.l = nn.Linear(4, 4); self.i = torch.randperm(4).tolist()",
        "return x[:, self.i] + self.l(x)",
    ),
}  # fmt: skip


def source(constructor, forward, parameters="x"):
    lines = [f"        {line.strip()}" for line in constructor.split(";")]
    return HEAD.format(constructor="\n".join(lines), parameters=parameters, forward=f"        {forward}")


@pytest.mark.parametrize("case", HOLDS_A_PARAMETER_TWICE)
def test_a_bundle_computes_what_a_plain_load_computes(tmp_path, case):
    torch.manual_seed(7)
    path = project(tmp_path / "p", source(*HOLDS_A_PARAMETER_TWICE[case]))
    module = runpy.run_path(str(tmp_path / "p" / "model.py"))["Net"]()
    state = {name: torch.rand_like(tensor) for name, tensor in module.state_dict().items()}
    if "b" in state:
        state["b"] = state["a"]  # one tensor under two names
    torch.save(state, tmp_path / "p" / "best.pt")
    module.load_state_dict(state)
    built = packager.build(path, tmp_path / "dist")
    x = torch.rand(6, 4)
    with torch.inference_mode():
        expected = module.eval()(x).numpy()
    actual = packager.load(built.bundle).run({"x": x.numpy()})["output_0"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_the_signature_comes_from_every_case(tmp_path):
    text = source("self.c = nn.Conv1d(1, 1, 3, stride=4, padding=1)", "return self.c(x)")
    inputs = {"x": {"dtype": "float32", "shape": ["batch", 1, "length"]}}
    built = packager.build(project(tmp_path / "p", text, inputs=inputs), tmp_path / "dist")
    config = json.loads((built.bundle / "config.json").read_text())
    assert config["outputs"][0]["shape"] == ["batch", 1, None]
    outputs = packager.load(built.bundle).run({"x": np.zeros((2, 1, 40), np.float32)})
    assert outputs["output_0"].shape == (2, 1, 10)
    assert packager.verify(built.bundle, trust_program=True).ok


def test_a_large_value_does_not_hide_errors_in_small_ones(tmp_path):
    forward = (
        "y = self.l(x); y = y * 2 if x[0, 0] > 0 else y; return torch.cat([y, torch.full_like(y[:, :1], -1e9)], 1)"
    )
    path = project(tmp_path / "p", source("self.l = nn.Linear(4, 4)", forward), torchscript={"method": "trace"})
    with pytest.raises(errors.ParityFailed):
        packager.build(path, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_dropout_beside_a_large_value_is_not_repeatable(tmp_path):
    forward = "y = F.dropout(self.l(x), 0.5); return torch.cat([y, torch.full_like(y[:, :1], -1e9)], 1)"
    with pytest.raises(errors.NotRepeatable):
        packager.build(project(tmp_path / "p", source("self.l = nn.Linear(4, 4)", forward)), tmp_path / "dist")


def test_a_branch_on_a_large_size_is_found(tmp_path):
    forward = "y = self.l(x); return y * 1.5 if x.shape[0] > 50 else y"
    path = project(
        tmp_path / "p",
        source("self.l = nn.Linear(4, 4)", forward),
        torchscript={"method": "trace"},
        export={"exporter": "torchscript"},
    )
    with pytest.raises(errors.ParityFailed):
        packager.build(path, tmp_path / "dist")


def test_a_branch_on_data_that_no_case_takes_is_reported_and_recorded(tmp_path):
    forward = "y = self.l(x); return y * 2 if x.max() > 50 else y"
    events = []
    path = project(tmp_path / "p", source("self.l = nn.Linear(4, 4)", forward))
    built = packager.build(path, tmp_path / "dist", listener=events.append)
    line = "model.py:14"
    assert any(carries(getattr(event, "message", ""), line) for event in events)
    parity = json.loads((built.bundle / "evidence/parity.json").read_text())
    assert any(carries(item, line) for item in parity["not_checked"])


def test_a_checkpoint_without_a_matching_key_is_refused_however_lenient_the_manifest(tmp_path, golden):
    lenient = {"path": "best.pt", "strict": False}
    path = project(tmp_path / "p", state={"zzz": torch.zeros(3)}, checkpoint=lenient)
    with pytest.raises(errors.StateDoesNotFit) as caught:
        packager.build(path, tmp_path / "dist")
    golden(caught.value.why)


@pytest.mark.parametrize(
    ("wrong", "near"), [("CPUExecutionProvidr", "CPUExecutionProvider"), ("CUDA", "CUDAExecutionProvider")]
)
def test_vet_and_build_refuse_an_unknown_provider_and_suggest_the_nearest(tmp_path, wrong, near, golden):
    path = project(tmp_path / "p", target={"providers": [wrong]})
    for command in (vet, packager.build):
        with pytest.raises(errors.ManifestInvalid) as caught:
            command(path)
        (problem,) = caught.value.problems
        golden(problem.message, f"{wrong!r}")
        golden(problem.hint, f"{near!r}")


def test_a_provider_that_this_machine_lacks_is_reported_as_not_compared(tmp_path, golden):
    path = project(tmp_path / "p", target={"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]})
    (unchecked,) = [item for item in vet(path).not_checked if "CUDA" in item]
    golden(unchecked, "CUDAExecutionProvider")
    events = []
    bundle = packager.build(path, tmp_path / "dist", listener=events.append).bundle
    assert any(unchecked in getattr(event, "message", "") for event in events)
    assert unchecked in json.loads((bundle / "evidence/parity.json").read_text())["not_checked"]
    assert any(unchecked in note for note in packager.verify(bundle, trust_program=True).notes)


def test_a_file_outside_the_bundle_is_never_loaded(bundle, golden):
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "model.onnx").rename(bundle.parent / "out.onnx")
    config["artifacts"]["onnx"]["path"] = "../out.onnx"
    (bundle / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.NotABundle) as caught:
        packager.load(bundle, verify=False)
    golden(caught.value.why, "config.json", "../out.onnx")


@pytest.mark.parametrize("more", ["", "\n    def __len__(self):\n        return 0\n"], ids=["", "a length of none"])
def test_a_module_that_keeps_something_from_its_first_input_is_refused(tmp_path, more, golden):
    lines = ["if self.seen is None: self.seen = x.mean()", "return self.l(x) * self.seen"]
    text = source("self.l = nn.Linear(4, 4); self.seen = None", "\n        ".join(lines)) + more
    with pytest.raises(errors.NotRepeatable) as caught:
        packager.build(project(tmp_path / "p", text), tmp_path / "dist")
    golden(caught.value.hint, "forward()")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("kept", ["register_buffer('mean', torch.zeros(4))", "mean = nn.Parameter(torch.zeros(4))"])
def test_a_module_that_writes_its_first_input_into_a_tensor_is_refused(tmp_path, kept):
    lines = ["if not self.mean.any(): self.mean.data.copy_(x.mean(0))", "return self.l(x - self.mean)"]
    path = project(tmp_path / "p", source(f"self.l = nn.Linear(4, 4); self.{kept}", "\n        ".join(lines)))
    with pytest.raises(errors.NotRepeatable):
        packager.build(path, tmp_path / "dist")


STATEFUL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.state = torch.zeros(0, 4)

    def forward(self, x):
        if len(self.state) != len(x):  # as streaming models do: another batch, another stream
            self.state = torch.zeros_like(x)
        self.state = self.state * 0.5 + x
        return self.layer(self.state)


def scripted():
    return torch.jit.script(Net())
"""


@pytest.mark.parametrize("entry", ["model.py:Net", "model.py:scripted"])
def test_a_state_that_starts_again_with_each_size_of_the_batch_is_refused(tmp_path, entry, golden):
    path = project(tmp_path / "p", STATEFUL, entry=entry)
    for command in (vet, packager.build):
        with pytest.raises(errors.NotRepeatable) as caught:
            command(path)
        golden(caught.value.hint, "forward()", "state")


def test_a_parameter_that_forward_writes_to_is_refused(tmp_path, golden):
    text = source("self.l = nn.Embedding(9, 4, max_norm=1.0)", "return self.l(x)")
    ids = {"x": {"dtype": "int64", "shape": ["batch"], "range": [0, 9]}}
    path = project(tmp_path / "p", text, inputs=ids)
    for command in (vet, packager.build):
        with pytest.raises(errors.ForwardChangesWeights) as caught:
            command(path)
        golden(caught.value.why, "l.weight")


def test_a_table_that_depends_on_sizes_alone_is_allowed(tmp_path):
    lines = [
        "if self.table is None or len(self.table) < x.shape[1]: self.table = torch.arange(x.shape[1]) * 0.1",
        "return self.l(x + self.table[: x.shape[1]])",
    ]
    text = source("self.l = nn.Linear(4, 4); self.table = None", "\n        ".join(lines))
    assert packager.build(project(tmp_path / "p", text), tmp_path / "dist").parity["onnx"] == "pass"


def test_a_module_that_cannot_be_copied_is_built_and_the_skipped_check_is_reported(tmp_path, golden):
    text = source("import threading; self.l = nn.Linear(4, 4); self.lock = threading.Lock()", "return self.l(x)")
    built = packager.build(project(tmp_path / "p", text), tmp_path / "dist")
    parity = json.loads((built.bundle / "evidence/parity.json").read_text())
    golden(parity["not_checked"][-1], "forward()")


def test_a_counter_of_calls_is_found_even_with_a_single_random_case(tmp_path):
    text = source("self.l = nn.Linear(4, 4); self.calls = 0", "self.calls += 1; return self.l(x) + self.calls")
    inputs = {"x": {"dtype": "float32", "shape": [2, 4]}}
    path = project(tmp_path / "p", text, inputs=inputs, parity={"samples": 1})
    with pytest.raises(errors.NotRepeatable):
        packager.build(path, tmp_path / "dist")
