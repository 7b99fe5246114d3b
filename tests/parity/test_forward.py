"""Forward passes of the module: named outputs, every way in which they fail, and repeatability."""

from contextlib import nullcontext

import numpy as np
import pytest
from messages import mentions
from projects import LINEAR

from packager.errors import ForwardFailed, NotRepeatable, OutputsUnsupported, render_error
from packager.parity import forward


def returning(expression):
    return LINEAR.replace("return self.layer(x)", f"y = self.layer(x)\n        return {expression}")


def test_a_forward_that_fails_shows_the_users_last_line(tmp_path, measured, golden):
    text = returning("self.layer(y)")
    with pytest.raises(ForwardFailed) as caught:
        measured(text)
    lines = render_error(caught.value).splitlines()
    golden(lines[0], "error[forward-failed]", "forward()", "000 (x: float32[2, 4])")
    assert lines[1] == f" --> {tmp_path / 'package.yaml'}:8: inputs"
    assert lines[2].strip() == "model.py:13 in forward"
    assert lines[3].strip() == "return self.layer(y)"
    mentions(lines[4].strip(), "RuntimeError", "mat1", "mat2")


def test_a_forward_that_exits_the_process_fails(measured):
    with pytest.raises(ForwardFailed) as caught:
        measured(returning("exit(0)"))
    assert caught.value.why.endswith("SystemExit: 0")


@pytest.mark.parametrize(
    "expression", ["y + torch.rand_like(y)", "y + self.__dict__.setdefault('calls', iter(range(99))).__next__()"]
)
def test_a_module_that_returns_something_different_at_each_call_is_refused(measured, expression, golden):
    with pytest.raises(NotRepeatable) as caught:
        measured(returning(expression))
    golden(caught.value.message, "forward()")


@pytest.mark.parametrize(
    ("expression", "facts"),
    [
        ("7", ()),
        ("{'y': y, 'n': 7}", ()),
        ("{'y': y, 'n': y.numpy()}", ()),
        ("()", ()),
        ("y.bfloat16()", ("output_0", "torch.bfloat16", "torch.strided", "numpy")),
        ("y.to_sparse()", ("output_0", "torch.float32", "torch.sparse_coo", "numpy")),
    ],
)
def test_outputs_other_than_tensors_that_numpy_supports_are_refused(measured, expression, facts, golden):
    with pytest.raises(OutputsUnsupported) as caught:
        measured(returning(expression))
    golden(caught.value.why, *facts)


@pytest.mark.parametrize(
    ("outputs", "facts"), [(["logit"], ("did you mean 'logits'?",)), (["other"], ("keys",))], ids=["close", "unlike"]
)
def test_an_output_that_forward_does_not_return_is_refused_with_the_closest_key(measured, outputs, facts, golden):
    with pytest.raises(OutputsUnsupported) as caught:
        measured(returning("{'logits': y, 'scores': y.softmax(-1)}"), outputs=outputs)
    golden(caught.value.why, *outputs, "logits", "scores")
    golden(caught.value.hint, *facts)


def test_complex_outputs_are_refused(measured):
    with pytest.raises(OutputsUnsupported) as caught:
        measured(returning("torch.complex(y, y)"))
    assert "complex64" in caught.value.why


def test_output_names_that_forward_does_not_return_are_refused(measured, golden):
    with pytest.raises(OutputsUnsupported) as caught:
        measured(returning("{'a': y, 'b': y}"), outputs=["c"])
    golden(caught.value.why, "forward()")


# -- nothing but padding --------------------------------------------------------------------

PADDED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, ids):
        assert ids.min() >= LEAST
        return self.encoder(self.table(ids), src_key_padding_mask=ids == 19)
"""
IDS = {"ids": {"dtype": "int64", "shape": ["batch", "seq"], "range": [0, 20]}}


def test_only_cases_that_the_fast_path_alone_refuses_are_left_out(opened):
    for least, left_out in ((0, {"high"}), (20, set())):
        loaded, model, grid = opened(PADDED.replace("LEAST", str(least)), IDS)
        kept, outputs = forward.drop_nothing_but_padding(loaded, model, grid)
        assert {case.value_description for case in grid.cases if case.name in kept.padding_cases} == left_out
        assert len(kept.padding_cases) == len(left_out)
        assert bool(outputs) == (least == 0) and not set(outputs) & set(kept.padding_cases)


# -- other weights for the time of a run ----------------------------------------------------

SHARED = LINEAR.replace(
    "self.layer = nn.Linear(4, 3)",
    "self.layer = nn.Linear(4, 4)\n        self.same = self.layer\n        self.tied = nn.Linear(4, 4)\n"
    "        self.tied.weight = self.layer.weight\n        self.rnn = nn.GRU(4, 3, batch_first=True)",
).replace("self.layer(x)", "self.rnn(self.tied(self.same(self.layer(x)))[:, None])[0]")


@pytest.mark.parametrize("raises", [False, True])
def test_a_module_has_its_own_weights_again_whatever_they_are_called(opened, raises):
    loaded, model, grid = opened(SHARED)
    before = dict(model.module.state_dict(keep_vars=True))
    state = {name: tensor.double() for name, tensor in forward.get_state(model.module).items()}
    with pytest.raises(RuntimeError) if raises else nullcontext():
        outputs = forward.run_with_state(loaded, model.module, state, grid.cases[0], widen=not raises)
        assert outputs["output_0"].dtype == np.float64
    after = model.module.state_dict(keep_vars=True)
    assert all(before[name] is after[name] for name in before)
    assert all(
        own is listed for own, listed in zip(model.module.rnn.parameters(), model.module.rnn._flat_weights, strict=True)
    )
    assert forward.run_case(loaded, model, grid.cases[0])["output_0"].dtype == np.float32
