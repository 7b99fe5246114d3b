"""The tree of errors: codes, exit statuses, and how they read."""

import inspect
import re

import pytest

from packager import errors
from packager.errors import PackagerError, Problem, Refused, UserError, did_you_mean, render


def concrete(base=PackagerError):
    """Every class of the tree that is raised: those below `Refused` and `UserError`."""
    found = []
    for one in base.__subclasses__():
        found += [] if one in (Refused, UserError) else [one]
        found += concrete(one)
    return found


def arguments(error_class):
    """What an error class may be told: for each argument, a value of its kind, with its name in a text."""
    kinds = {
        "object": lambda name: 7,
        "int": lambda name: 7,
        "Sequence[str]": lambda name: [f"<{name}>"],
        "Sequence[Problem]": lambda name: [Problem(f"<{name}>", "file:1: field", "a hint")],
    }
    parameters = inspect.signature(error_class).parameters.values()
    return {one.name: kinds.get(one.annotation, "<{}>".format)(one.name) for one in parameters}


def names(value):
    return value.__name__


def test_no_two_errors_share_a_code():
    codes = [one.code for one in concrete()]
    assert len(codes) == len(set(codes)) > 20


@pytest.mark.parametrize("error_class", concrete(), ids=names)
def test_a_code_is_kebab_case(error_class):
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error_class.code)


@pytest.mark.parametrize("error_class", concrete(), ids=names)
def test_an_error_is_a_refusal_or_the_users_to_mend(error_class):
    expected = {1: Refused, 2: UserError}
    assert issubclass(error_class, expected[error_class.exit_status])


@pytest.mark.parametrize("error_class", concrete(), ids=names)
def test_an_error_words_itself(error_class):
    error = error_class(**arguments(error_class))
    assert render(error).startswith(f"error[{error_class.code}]: {error.message}")
    assert error.as_json()["code"] == error_class.code
    assert str(error) == render(error) and error.message != ""  # what a service's log has of it


@pytest.mark.parametrize("error_class", concrete(), ids=names)
def test_whatever_an_error_is_told_it_says(error_class):
    told = arguments(error_class)
    rendered = render(error_class(**told))
    assert [name for name, value in told.items() if value != 7 and f"<{name}>" not in rendered] == []


def test_an_error_reads_from_what_is_wrong_to_what_to_do():
    error = errors.ForwardFailed("package.yaml:8: inputs", "000 (x: float32[2])", "model.py:3\nValueError: no")
    assert render(error) == (
        "error[forward-failed]: forward() fails on the sample 000 (x: float32[2])\n"
        " --> package.yaml:8: inputs\n"
        "  model.py:3\n"
        "  ValueError: no\n"
        "hint: check dtype, shape and range of the inputs, and the limits of the dims; a size that must be a multiple, "
        "or below another, can only be given as a number"
    )


def test_a_module_that_is_decided_by_ties_is_told_on_which_case():
    error = errors.DecidedByTies("package.yaml:9: parity", "004 (extremes), where a tie decides labels", 3, 8)
    assert render(error) == (
        "error[decided-by-ties]: what this module gives hangs on ties, so no artifact could be held to it\n"
        " --> package.yaml:9: parity\n"
        "  inputs moved by a few roundings give something else on 5 of 8 cases: "
        "004 (extremes), where a tie decides labels\n"
        "hint: break ties in forward(), round what is ranked, or return the scores instead of their order"
    )


def test_problems_stand_between_the_message_and_the_hint():
    found = [Problem("one\nof two lines", "package.yaml:2: name", "a hint"), Problem("another")]
    hint = "export.required: false ships TorchScript alone"
    assert render(errors.ExportFailed("package.yaml:9: export", found, hint)) == (
        "error[export-failed]: no exporter can express this model in ONNX\n"
        " --> package.yaml:9: export\n"
        " --> package.yaml:2: name\n"
        "  one\n"
        "  of two lines\n"
        "  hint: a hint\n"
        "  another\n"
        "hint: export.required: false ships TorchScript alone"
    )


def test_an_error_without_a_hint_ends_without_one():
    assert render(errors.ManifestSyntax("package.yaml:3", "found a tab")) == (
        "error[manifest-syntax]: this is not YAML\n --> package.yaml:3\n  found a tab"
    )


def test_json_holds_what_the_text_holds():
    error = errors.CheckpointDigestWrong("best.pt", "package.yaml:5: checkpoint.sha256", "aa", "bb")
    assert error.as_json() == {
        "code": "checkpoint-digest",
        "message": "best.pt is not the checkpoint that the manifest pins\npinned: aa\nfound:  bb",
        "where": "package.yaml:5: checkpoint.sha256",
        "hint": "restore the file, or pin the new digest",
    }


def test_json_lists_every_problem():
    error = errors.ManifestInvalid("package.yaml", [Problem("one", "package.yaml:1: a", "do it"), Problem("two")])
    assert error.as_json() == {
        "code": "manifest-invalid",
        "message": "2 problems in package.yaml",
        "where": None,
        "hint": "`package schema manifest` prints every field",
        "problems": [
            {"message": "one", "where": "package.yaml:1: a", "hint": "do it"},
            {"message": "two", "where": None, "hint": None},
        ],
    }


@pytest.mark.parametrize(
    ("wrong", "known", "hint"),
    [
        ("flaot32", ["float16", "float32"], "did you mean 'float32'?"),
        ("batsch", ["batch"], "did you mean 'batch'?"),
        ("zzz", ["batch", "length"], "known here: batch, length"),
        ("zzz", [], None),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_or_with_all(wrong, known, hint):
    assert did_you_mean(wrong, known) == hint
