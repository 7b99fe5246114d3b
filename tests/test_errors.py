"""The tree of errors: codes, exit statuses, and how they read."""

import inspect
import json
import re

import pytest
from error_cases import CASES
from messages import GOLDENS, mentions

from packager import errors
from packager.errors import PackagerError, Problem, Refused, UserError, did_you_mean, render_error


def concrete(base=PackagerError):
    """Every class of the tree that is raised: those below `Refused` and `UserError`."""
    found = []
    for one in (one for one in base.__subclasses__() if one.__module__ == errors.__name__):
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
    assert render_error(error).startswith(f"error[{error_class.code}]: {error.message}")
    assert error.as_json()["code"] == error_class.code
    assert str(error) == render_error(error) and error.message != ""  # what a service's log has of it


@pytest.mark.parametrize("error_class", concrete(), ids=names)
def test_whatever_an_error_is_told_it_says(error_class):
    told = arguments(error_class)
    rendered = render_error(error_class(**told))
    assert [name for name, value in told.items() if value != 7 and f"<{name}>" not in rendered] == []


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
    """An error whose every part is given, to show the layout whatever the wording of the real ones."""

    code = "sample"


def test_an_error_reads_from_what_is_wrong_to_what_to_do():
    error = Sample("wrong", where="package.yaml:8: inputs", why="model.py:3\nValueError: no", hint="do it")
    assert render_error(error) == (
        "error[sample]: wrong\n --> package.yaml:8: inputs\n  model.py:3\n  ValueError: no\nhint: do it"
    )


def test_problems_stand_between_the_message_and_the_hint():
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
    ("wrong", "known", "facts"),
    [
        ("flaot32", ["float16", "float32"], ("float32",)),
        ("batsch", ["batch"], ("batch",)),
        ("zzz", ["batch", "length"], ("batch", "length")),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_or_with_all(wrong, known, facts, golden):
    golden(did_you_mean(wrong, known), *facts)


def test_an_unknown_name_where_there_are_none_is_not_answered():
    assert did_you_mean("zzz", []) is None
