"""The tree of errors: codes, exit statuses and wording."""

import inspect
import json
import re

import pytest
from error_cases import CASES
from messages import GOLDENS, mentions

from packager import errors
from packager.errors import PackagerError, Problem, Refused, UserError, did_you_mean, render_error


def concrete(base=PackagerError):
    """Return every class of the tree that is raised: those below `Refused` and `UserError`."""
    classes = []
    for error_class in base.__subclasses__():
        if error_class.__module__ == errors.__name__:
            classes += [] if error_class in (Refused, UserError) else [error_class]
            classes += concrete(error_class)
    return classes


def arguments(error_class):
    """Return a value for each argument of an error class; a text has the name of the argument in it."""
    kinds = {
        "object": lambda name: 7,
        "int": lambda name: 7,
        "Sequence[str]": lambda name: [f"<{name}>"],
        "Sequence[Problem]": lambda name: [Problem(f"<{name}>", "file:1: field", "a hint")],
    }
    parameters = inspect.signature(error_class).parameters.values()
    return {argument.name: kinds.get(argument.annotation, "<{}>".format)(argument.name) for argument in parameters}


def names(value):
    return value.__name__


def test_no_two_errors_share_a_code():
    codes = [error_class.code for error_class in concrete()]
    assert len(codes) == len(set(codes)) > 25


@pytest.mark.parametrize("error_class", concrete(), ids=names)
def test_a_code_is_kebab_case(error_class):
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error_class.code)


@pytest.mark.parametrize("error_class", concrete(), ids=names)
def test_an_error_is_a_refusal_or_for_the_user_to_fix(error_class):
    expected = {1: Refused, 2: UserError}
    assert issubclass(error_class, expected[error_class.exit_status])


@pytest.mark.parametrize("error_class", concrete(), ids=names)
def test_an_error_defines_its_own_wording(error_class):
    error = error_class(**arguments(error_class))
    assert render_error(error).startswith(f"error[{error_class.code}]: {error.message}")
    assert error.as_json()["code"] == error_class.code
    assert str(error) == render_error(error) and error.message != ""


@pytest.mark.parametrize("error_class", concrete(), ids=names)
def test_an_error_shows_each_of_its_arguments(error_class):
    values = arguments(error_class)
    rendered = render_error(error_class(**values))
    assert [name for name, value in values.items() if value != 7 and f"<{name}>" not in rendered] == []


@pytest.mark.parametrize("name", CASES)
def test_the_whole_message_and_its_json(error_golden, name):
    error_golden(
        name, f"{render_error(CASES[name])}\n\n{json.dumps(CASES[name].as_json(), indent=2, ensure_ascii=False)}\n"
    )


@pytest.mark.parametrize("name", CASES)
def test_a_golden_file_is_named_after_the_code_of_its_error(name):
    assert CASES[name].code == name.partition("--")[0]


def test_every_error_class_has_a_golden_file():
    assert {type(error) for error in CASES.values()} == set(concrete())


def test_every_golden_file_shows_an_error():
    assert {path.name for path in (GOLDENS / "errors").iterdir()} == {f"{name}.txt" for name in CASES}


def test_decided_by_ties_counts_the_cases_that_are_decided_by_ties():
    mentions(errors.DecidedByTies("package.yaml:9: parity", "004", steady=3, cases=8).why, "5", "8", "004")


class Sample(PackagerError):
    """An error to test the layout with, independent of the wording of real errors."""

    code = "sample"


def test_an_error_reads_from_what_is_wrong_to_what_to_do():
    error = Sample("wrong", where="package.yaml:8: inputs", why="model.py:3\nValueError: no", hint="do it")
    assert render_error(error) == (
        "error[sample]: wrong\n --> package.yaml:8: inputs\n  model.py:3\n  ValueError: no\nhint: do it"
    )


def test_problems_are_listed_between_the_message_and_the_hint():
    problems = [Problem("one\nof two lines", "package.yaml:2: name", "a hint"), Problem("another")]
    assert render_error(Sample("wrong", where="package.yaml:9: export", problems=problems, hint="do it")) == (
        "error[sample]: wrong\n"
        " --> package.yaml:9: export\n"
        " --> package.yaml:2: name\n"
        "  one\n"
        "  of two lines\n"
        "  hint: a hint\n"
        "  another\n"
        "hint: do it"
    )


def test_an_error_without_a_hint_ends_without_one():
    assert render_error(Sample("wrong", where="file:3", why="a tab")) == "error[sample]: wrong\n --> file:3\n  a tab"


def test_json_holds_what_the_text_holds():
    error = Sample("wrong", where="package.yaml:5: field", why="pinned: aa\nfound:  bb", hint="do it")
    assert error.as_json() == {
        "code": "sample",
        "message": "wrong\npinned: aa\nfound:  bb",
        "where": "package.yaml:5: field",
        "hint": "do it",
    }


def test_json_lists_every_problem():
    error = Sample("wrong", problems=[Problem("one", "package.yaml:1: a", "do it"), Problem("two")])
    assert error.as_json() == {
        "code": "sample",
        "message": "wrong",
        "where": None,
        "hint": None,
        "problems": [
            {"message": "one", "where": "package.yaml:1: a", "hint": "do it"},
            {"message": "two", "where": None, "hint": None},
        ],
    }


@pytest.mark.parametrize(
    ("name", "candidates", "facts"),
    [
        ("flaot32", ["float16", "float32"], ("float32",)),
        ("batsch", ["batch"], ("batch",)),
        ("zzz", ["batch", "length"], ("batch", "length")),
    ],
)
def test_the_hint_for_an_unknown_name_has_the_closest_name_or_all(name, candidates, facts, golden):
    golden(did_you_mean(name, candidates), *facts)


def test_without_candidates_there_is_no_hint():
    assert did_you_mean("zzz", []) is None


def test_no_part_of_an_error_passes_control_characters_on():
    controls = "a\x1b[2J\u202e\r\x0b\x85b"
    problems = [Problem(controls, controls, controls)]
    error = Sample(controls, where=controls, why=f"{controls}\n{controls}", hint=controls, problems=problems)
    lines = render_error(error).split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 8
    assert [r"a\x1b[2J\u202e\r\x0b\x85b" in line for line in lines] == [True] * 8
    assert error.message == controls  # for programs
