"""The inputs of a manifest against the parameters of forward()."""

import pytest
from loading import load, refused, zero_project
from projects import FLOATS, LINEAR

from packager.errors import InputsDoNotFit, render_error

TWO = LINEAR.replace("forward(self, x)", "forward(self, x, scale, shift=0.0)").replace(
    "self.layer(x)", "self.layer(x) * scale + shift"
)


BY_NAME = "by name only, and inputs are passed by position"


def inputs(*names):
    return dict.fromkeys(names, FLOATS["x"])


@pytest.mark.parametrize("names", [("x", "scale"), ("x", "scale", "shift"), ("a", "b"), ("x", "other")])
def test_inputs_are_given_in_order_and_the_names_are_free(tmp_path, names):
    assert load(zero_project(tmp_path, TWO, inputs=inputs(*names))).parameters == 15


def test_too_many_inputs_are_refused(tmp_path, golden):
    path = zero_project(tmp_path, TWO, inputs=inputs("x", "scale", "shift", "more"))
    golden(
        render_error(refused(path, InputsDoNotFit)),
        "error[inputs-do-not-fit]",
        "forward()",
        f"{path}:8: inputs",
        "4",
        "scale",
        "shift",
        "more",
    )


def test_too_few_inputs_are_refused(tmp_path, golden):
    error = refused(zero_project(tmp_path, TWO, inputs=inputs("x")), InputsDoNotFit)
    golden(error.why, "forward()")
    golden(error.hint)


def test_inputs_in_a_different_order_are_refused(tmp_path, golden):
    error = refused(zero_project(tmp_path, TWO, inputs=inputs("scale", "x")), InputsDoNotFit)
    golden(error.why, "forward()", "1", "2", "scale")
    assert error.where.endswith("inputs.scale")


def test_a_forward_that_takes_any_number_takes_any_number(tmp_path):
    text = LINEAR.replace("forward(self, x)", "forward(self, *x)").replace("self.layer(x)", "self.layer(sum(x))")
    assert load(zero_project(tmp_path, text, inputs=inputs("a", "b", "c"))).parameters == 15


def test_a_keyword_only_parameter_is_not_an_input(tmp_path, golden):
    text = LINEAR.replace("forward(self, x)", "forward(self, x, *, scale)")
    error = refused(zero_project(tmp_path, text), InputsDoNotFit)
    golden(error.why, "forward()", "scale")
    load(zero_project(tmp_path / "optional", text.replace("*, scale", "*, scale=1.0")))


@pytest.mark.parametrize(
    "parameters", ["x, **kwargs", "x, *rest, **kwargs", "x, /, *, scale=1.0, **kwargs", "*x, **more"]
)
def test_optional_keyword_arguments_are_not_inputs(tmp_path, parameters):
    text = LINEAR.replace("forward(self, x)", f"forward(self, {parameters})").replace(
        "layer(x)", "layer(torch.zeros(4))"
    )
    assert load(zero_project(tmp_path, text)).parameters == 15


@pytest.mark.parametrize(
    ("parameters", "names", "why"),
    [
        ("x, **kwargs", ["x", "y"], "forward() takes: x\nthe manifest gives 2: x, y"),
        ("x, **kwargs", ["x", "kwargs"], "forward() takes: x\nthe manifest gives 2: x, kwargs"),
        ("x, *, scale=1.0, **kwargs", ["x", "scale"], f"forward() takes scale {BY_NAME}"),
        ("*, x", ["x"], f"forward() takes x {BY_NAME}"),
        ("", ["x"], "forward() takes no inputs\nthe manifest gives 1: x"),
        ("x, y, /, *rest, **kwargs", ["x"], "forward() takes: x, y\nwithout an input: y"),
        ("x, y, **kwargs", ["y", "x"], "forward() takes: x, y\ny is input 1 of the manifest and parameter 2"),
        ("x, *rest, scale, **kwargs", ["x"], f"forward() takes scale {BY_NAME}"),
    ],
)
def test_an_input_is_never_passed_as_a_keyword_argument(tmp_path, parameters, names, why):
    text = LINEAR.replace("forward(self, x)", f"forward(self, {parameters})")
    assert refused(zero_project(tmp_path, text, inputs=inputs(*names)), InputsDoNotFit).why == why
