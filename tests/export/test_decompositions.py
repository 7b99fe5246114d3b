"""Operators that an exporter lacks are replaced by equal ones, at every size, and only while it runs."""

import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exporting import export
from projects import project

from packager.export import decompositions
from packager.export.operators import ALIASES, OPERATORS

ROWS = torch.tensor([[3.0, -1.5, 3.0, 0.25], [-0.0, 0.0, -2.0, 7.0], [1.5, 1.5, 1.5, -1.5]])
OTHER = ROWS.flip(0) + 0.5
NAN, INF = float("nan"), float("inf")
SORTED = torch.tensor([[-2.0, 0.0, 1.5], [0.0, 1.5, 1.5], [1.0, 3.0, 7.0]])
ORDER = torch.tensor([[3.0, -1.5, 2.0, 0.25], [-0.5, 0.0, -2.0, 7.0], [1.5, 4.0, 1.0, -1.0]])
POSITIONS = torch.tensor([[2, 0], [1, 1], [3, 2]])
WEIGHTS = torch.arange(24.0).reshape(3, 4, 2)
ENDS = torch.tensor([0, 1, 3], dtype=torch.int32)

# Arguments, and keyword arguments: more than one call where a function has more than one case.
CALLS = {
    "aten::cdist": [((ROWS, OTHER), {}), ((ROWS, OTHER, 1.0), {})],
    "aten::channel_shuffle": [((ROWS.reshape(1, 4, 3, 1), 2), {})],
    "aten::column_stack": [
        (([ROWS, POSITIONS],), {}),
        (([ROWS[:, 0], POSITIONS > 1],), {}),
        (([torch.tensor(1.5), torch.tensor(2)],), {}),
    ],
    "aten::copysign.Tensor": [((ROWS, torch.tensor([-0.0, 0.0, -2.0, 3.0])), {})],
    "aten::cummax": [((ROWS, 1), {}), ((ROWS.long(), -2), {})],
    "aten::cummin": [((ROWS, 1), {}), ((ROWS.long(), -2), {})],
    "aten::cumprod": [((ROWS, 0), {}), ((ROWS.int(), 1), {}), ((ROWS.int(), 1), {"dtype": torch.float32})],
    "aten::diff": [((ROWS,), {}), ((ROWS, 2, 0), {}), ((ROWS > 0, 1, 1, ROWS[:, :1] > 0, ROWS[:, :2] > 0), {})],
    "aten::dstack": [(([ROWS[:, :2], POSITIONS],), {}), (([POSITIONS[0], ROWS[0, :2]],), {})],
    "aten::erfc": [((ROWS,), {})],
    "aten::exp2": [((ROWS,), {})],
    "aten::expm1": [((ROWS,), {})],
    "aten::fmax": [((torch.tensor([NAN, 1.0, NAN, -2.0]), torch.tensor([1.0, NAN, NAN, 3.0])), {})],
    "aten::fmin": [((torch.tensor([NAN, 1.0, NAN, -2.0]), torch.tensor([1.0, NAN, NAN, 3.0])), {})],
    "aten::frac": [((ROWS,), {})],
    "aten::histc": [((torch.tensor([-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 9.0]), 4, 0, 2), {})],
    "aten::hstack": [(([ROWS, POSITIONS],), {}), (([POSITIONS[0], ROWS[0], torch.tensor(2)],), {})],
    "aten::hypot": [((ROWS, OTHER), {})],
    "aten::isclose": [
        ((torch.tensor([1.0, 1.0, INF, NAN]), torch.tensor([1.0 + 1e-6, 1.1, INF, NAN])), {}),
        ((torch.tensor([NAN, INF]), torch.tensor([NAN, -INF]), 1e-5, 1e-8, True), {}),
    ],
    "aten::isin.Tensor_Tensor": [((ROWS, SORTED), {}), ((ROWS, SORTED), {"invert": True})],
    "aten::kthvalue": [((ORDER, 2), {}), ((ORDER, 1, 0, True), {})],
    "aten::logaddexp": [((ROWS, OTHER), {}), ((torch.tensor([-INF, INF]), torch.tensor([-INF, 1.0])), {})],
    "aten::logcumsumexp": [((ROWS, 0), {})],
    "aten::median": [((ROWS,), {})],
    "aten::median.dim": [((ORDER, 1), {}), ((ORDER, 0, True), {})],
    "aten::searchsorted.Tensor": [
        ((SORTED, ROWS), {}),
        ((SORTED[0], ROWS), {"right": True, "out_int32": True}),
        ((SORTED, ROWS), {"side": "right", "sorter": torch.arange(3).expand(3, 3)}),
    ],
    "aten::take_along_dim": [
        ((ROWS, POSITIONS, 1), {}),
        ((ROWS, POSITIONS), {}),
        ((ROWS[:1], POSITIONS, 1), {}),
        ((ROWS, POSITIONS[:1], -1), {}),
    ],
    "aten::trunc": [((ROWS,), {})],
    "aten::vstack": [(([ROWS[:, :2], POSITIONS, POSITIONS[0] > 1],), {})],
}
GROUPED = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")


def _call(name, arguments, options):
    operator, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, operator), overload or "default")(*arguments, **options)


def test_every_operator_is_called():
    assert CALLS.keys() == OPERATORS.keys() - set(GROUPED)


@pytest.mark.parametrize("name", CALLS)
def test_a_replacement_computes_what_its_operator_does(name):
    for arguments, options in CALLS[name]:
        expected, actual = _call(name, arguments, options), OPERATORS[name](*arguments, **options)
        torch.testing.assert_close(
            actual, type(actual)(expected) if isinstance(actual, tuple) else expected, equal_nan=True
        )


def test_a_grouped_product_is_that_of_each_group_with_its_matrix():
    expected = torch.cat([ROWS[:1] @ WEIGHTS[1], ROWS[1:] @ WEIGHTS[2]])
    for name in GROUPED:
        torch.testing.assert_close(OPERATORS[name](ROWS, WEIGHTS, ENDS), expected)


SOURCE = """
import torch
from torch import nn


class Part(nn.Module):
    def forward(self, x, y):
        return EXPRESSION


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Part()  # a trace normalizes aliases only in the outermost module
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x, y):
        return self.part(x, y * self.scale)
"""
INPUTS = {name: {"dtype": "float32", "shape": ["batch", "length", 4]} for name in "xy"}
JOINS = (
    "torch.column_stack((x, y > 0))[:, :1] + torch.hstack((y.long(), x))[:, :1] + torch.vstack((x, y > 0))[:1]"
    " + torch.dstack((y > 0, x))[..., 3:7] + torch.stack((x > 0, y))[0] + torch.cat((x > 0, y.int(), y))[:1]"
)
UNFOLDED = "torch.nn.functional.unfold(torch.cat((x, y[:, :1]), 1)[:, None], (2, 3), 1, (1, 0), (1, 1))"
EXPRESSIONS = {
    "an alias": "x.swapaxes(1, 2) + torch.special.expm1(y).mT",
    "an alias of an operator that is replaced": "torch.fix(x * 3)",
    "torch's own composition": "torch.fliplr(x) + torch.column_stack((x, y))[:, :1]",
    "torch's own function in Python": "torch.special.entr(x.abs()) + torch.xlogy(x, y.abs() + 1)",
    "operators inside of others": "torch.nn.functional.rms_norm(x, (4,))",
    "an operator of ONNX": "x.asinh() + y.cosh() + x.sinh() + x.tanh().atanh() + (y.abs() + 1.5).acosh()",
    "sizes": "torch.cat((x, y), 1).diff(dim=1, prepend=y[:, :1]).cummax(1).values",
    "a broadcast": "torch.take_along_dim(x, y[:1].argsort(1), 1)",
    "an order": "x.median(1).values + y.kthvalue(1, 1).values",
    "a search": "torch.searchsorted(x.sort(2).values.contiguous(), y) + torch.isin(x.round(), y.round())",
    "a count of booleans": "(x > 0).cumsum(1) * y",
    "a size that is folded to": "torch.nn.functional.fold("
    + UNFOLDED
    + ", (x.shape[1] + 1, 4), (2, 3), 1, (1, 0), (1, 1))",
    "tensors of different dtypes": JOINS,
    "an unflattened dim": "x.unflatten(2, (2, 2)).transpose(1, 2).reshape(x.shape[0], -1)",
}


def _check(exporter, folder, text):
    graph, grid, cases, _ = export(exporter, project(folder, text, inputs=INPUTS), folder)
    session = onnxruntime.InferenceSession(graph)
    for case in grid.cases:
        (actual,) = session.run(
            None, {name: case.inputs[name] for name in (value.name for value in session.get_inputs())}
        )
        np.testing.assert_allclose(actual, cases[case.name]["output_0"], rtol=2e-3, atol=1e-5)
    return onnx.load(graph)


@pytest.mark.parametrize("kind", EXPRESSIONS)
def test_a_module_is_exported_with_operators_that_the_exporter_lacks(tmp_path, kind):
    _check("module", tmp_path, SOURCE.replace("EXPRESSION", EXPRESSIONS[kind]))


ALIAS_CALLS = (
    "torch.subtract(x, y).multiply(torch.divide(x, y.absolute() + 1)).negative()"
    " + torch.greater(x, y) * torch.less_equal(x, 1) + torch.not_equal(x, y) * torch.less(x, y)"
    " + torch.clip(x, -1, 1).swapaxes(1, 2).moveaxis(1, 2) + torch.concatenate((x, y)).narrow(0, 0, x.shape[0])"
    " + torch.special.softmax(torch.special.expit(y), -1) + torch.arccos(x * 0) + torch.arcsinh(x)"
)
IN_PLACE_CALLS = (
    "(x + 1).subtract_(y).multiply_(2).divide_(y.abs() + 1).clip_(-1, 1).negative_().swapaxes_(0, 1).swapaxes(0, 1)"
)


@pytest.mark.parametrize("exporter", ["torchscript", "module", "torch-export"])
@pytest.mark.parametrize("calls", [ALIAS_CALLS, IN_PLACE_CALLS])
def test_an_alias_of_an_operator_is_exported_like_the_operator(tmp_path, exporter, calls):
    _check(exporter, tmp_path, SOURCE.replace("EXPRESSION", calls))


def _compile_call(name):
    """Compile a call of an operator, given arguments of the types in its schema."""
    arguments = decompositions._list_overloads(name)[0]._schema.arguments
    types = [
        re.sub(r"(\w+)\?", r"Optional[\1]", str(argument.type)).replace("number", "float") for argument in arguments
    ]
    declared = ", ".join(f"a{k}: {kind}" for k, kind in enumerate(types))
    given = ", ".join(f"{argument.name}=a{k}" for k, argument in enumerate(arguments))
    call = f"torch.ops.aten.{name.removeprefix('aten::')}({given})"
    return torch.jit.CompilationUnit(f"def f({declared}):\n    return {call}\n").f.graph


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_what_torch_normalizes_to_its_operator(alias):
    kinds = [node.kind() for node in _compile_call(alias).nodes() if node.kind().startswith("aten::")]
    assert kinds == [ALIASES[alias]]


@pytest.mark.parametrize(
    "moved",
    [
        "x.permute(0, -1, -2)",
        "x.movedim(-1, 1)",
        "x.movedim((-2, 0), (-1, 0))",
        "Moved()(x)",
    ],
)
def test_a_permutation_may_count_dims_from_the_end(tmp_path, moved):
    inner = "class Moved(torch.nn.Module):\n    def forward(self, x):\n        return x.moveaxis(-1, -2)\n"
    _check("torchscript", tmp_path, SOURCE.replace("EXPRESSION", f"{moved} @ y") + "\n\n" + inner)


def test_a_dim_that_counts_from_the_end_stays_a_constant_of_its_own(tmp_path):
    repeated = "x[:, :, :2].repeat_interleave(2, dim=-1)"
    _check(
        "torchscript", tmp_path, SOURCE.replace("EXPRESSION", f"{repeated} * x.shape[1] + y.reshape(x.shape[0], -1, 4)")
    )


def test_torch_export_takes_what_it_lacks_beside_what_only_it_has(tmp_path):
    _check("torch-export", tmp_path, SOURCE.replace("EXPRESSION", "torch.fft.rfft(x).abs() + x.median(2, True).values"))


def test_torch_export_joins_tensors_of_different_dtypes(tmp_path):
    _check("torch-export", tmp_path, SOURCE.replace("EXPRESSION", JOINS))


def test_a_program_that_joins_tensors_of_one_dtype_stays_as_it_is():
    module = torch.nn.Module()
    module.forward = lambda x: torch.hstack((x, torch.cat((x, x))[:1]))
    program = torch.export.export(module, (torch.ones(1, 3),))
    assert decompositions.promote_concatenations(program) is program


def test_a_function_with_a_gradient_of_its_own_is_exported_from_the_module(tmp_path):
    text = SOURCE.replace("EXPRESSION", "Scale.apply(x, 2.0) + y").replace(
        "class Part",
        """class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        return x * factor - x.mean(-1, keepdim=True)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Part""",
    )
    _check("module", tmp_path, text)


def test_a_replacement_ends_with_the_export():
    def trace():
        return torch.jit.trace(lambda x: x.diff(), torch.ones(2, 3), check_trace=False).graph

    assert "aten::diff" in str(trace())
    seen = []

    def fail():
        seen.append("aten::diff" in str(trace()))
        raise torch.onnx.errors.UnsupportedOperatorError("aten::diff", 20, None)

    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError, match="aten::diff"):
        decompositions.retry_with_decompositions(fail)
    assert seen == [True, False]
    assert "aten::diff" in str(trace())


def test_the_error_of_an_export_is_about_the_operator_that_has_no_replacement():
    calls = iter(["aten::diff", "aten::linalg_qr"])

    def fail():
        raise torch.onnx.errors.UnsupportedOperatorError(next(calls), 20, None)

    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError, match="aten::linalg_qr"):
        decompositions.retry_with_decompositions(fail)
