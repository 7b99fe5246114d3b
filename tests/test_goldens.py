"""The golden files: each section belongs to a test, and a message that differs from its section fails."""

import ast
from pathlib import Path

import pytest
from messages import GOLDENS, Golden, mentions, read_sections

MODULE_GOLDENS = sorted(path for path in GOLDENS.rglob("test_*.txt") if path.parent != GOLDENS / "errors")


def module_of(path):
    """Return the test module whose messages a golden file holds: goldens/ mirrors tests/."""
    module = GOLDENS.parent / path.relative_to(GOLDENS).with_suffix(".py")
    assert module.is_file(), f"{path} belongs to no test module"
    return module


def functions_in(module):
    """Return the names of all functions of a module, as goldens are checked in tests and in fixtures."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", MODULE_GOLDENS, ids=lambda path: path.stem)
def test_every_section_of_a_golden_file_belongs_to_a_test(path):
    tests = {heading.partition("[")[0].partition(" ")[0] for heading in read_sections(path)}
    assert tests and tests - functions_in(module_of(path)) == set()


@pytest.fixture
def checked(tmp_path):
    """Make a golden check of tmp_path/messages.txt."""

    def make(*, update=False):
        return Golden(tmp_path / "messages.txt", "test_it[one]", {str(tmp_path): "<folder>"}, update=update)

    return make


def test_a_message_reads_as_it_was_written(checked, tmp_path):
    for update in (True, False):
        golden = checked(update=update)
        golden(f"no file {tmp_path}/a", "file")
        golden("two\nlines\n", "lines")
        golden("0.25 too far", distance="0.25")
    text = (tmp_path / "messages.txt").read_text()
    assert text == (
        "==== test_it[one]\nno file <folder>/a\n"
        "==== test_it[one] 2\ntwo\nlines\n\n"
        "==== test_it[one] 3\n<distance> too far\n"
    )


def test_other_wording_fails_with_the_difference(checked):
    checked(update=True)("no file")
    with pytest.raises(AssertionError, match=r"(?s)--update-goldens.*-no file.*\+no folder"):
        checked()("no folder")


def test_a_message_without_a_golden_fails_and_says_how_to_write_one(checked):
    with pytest.raises(AssertionError, match="--update-goldens"):
        checked()("no file")


def test_a_lost_fact_fails_even_if_the_goldens_are_rewritten(checked):
    for facts, values in ((("model.py",), {}), ((), {"distance": "0.25"})):
        with pytest.raises(AssertionError, match="not mentioned"):
            checked(update=True)("no file", *facts, **values)


@pytest.mark.parametrize("fact", ["8", "16", "model", "[2, 3]", Path("a/b")])
def test_a_fact_that_is_only_part_of_a_longer_word_or_number_is_missing(fact):
    mentions(f"it is {fact}, not x", fact)
    with pytest.raises(AssertionError):
        mentions("128 and 160 of models, [2, 30]; a/bc", fact)
