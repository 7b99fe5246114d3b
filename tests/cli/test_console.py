"""Progress as plain lines."""

import pytest

from packager.cli import console
from packager.common.progress import StageName, StageReporter


def test_the_steps_of_a_long_search_are_shown_at_intervals(monkeypatch, capsys):
    monkeypatch.setattr(console, "is_terminal", lambda: False)
    monkeypatch.setattr(console, "_PROGRESS_INTERVAL_SECONDS", 0)
    with console.show_progress(quiet=False) as listener:
        StageReporter(listener).report_step(StageName.WHERE, 5, 7, "comparison 1")
        monkeypatch.setattr(console, "_PROGRESS_INTERVAL_SECONDS", 100)
        StageReporter(listener).report_step(StageName.WHERE, 6, 7, "comparison 2")
    assert capsys.readouterr().err == "where        step 5 of 7: comparison 1\n"


def test_the_steps_of_a_long_search_are_shown_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.show_progress(quiet=False) as listener:
        StageReporter(listener).report_step(StageName.WHERE, 5, 7, "comparison 1")
    assert "where … step 5 of 7: comparison 1" in capsys.readouterr().err


CONTROLS = "a\x1b[2J\u202e\x85"
ESCAPED = r"a\x1b[2J\u202e\x85"


def test_no_table_passes_control_characters_on(capsys):
    console.print_table(("", CONTROLS), [("x", CONTROLS), (CONTROLS + "\n", 1)])
    console.print_key_values({CONTROLS: f"{CONTROLS}\n{CONTROLS}"})
    console.print_signature([{"name": CONTROLS, "dtype": CONTROLS, "shape": [CONTROLS]}], [])
    console.print_line(CONTROLS)
    out = capsys.readouterr().out
    assert out.count(ESCAPED) == 10
    assert all(character.isprintable() or character == "\n" for character in out)
    assert out.splitlines()[4] == " " * len(ESCAPED) + f"  {ESCAPED}"  # the second line of a value stays one


@pytest.mark.parametrize("terminal", [True, False])
def test_no_note_or_step_passes_control_characters_on(monkeypatch, capsys, terminal):
    monkeypatch.setattr(console, "is_terminal", lambda: terminal)
    monkeypatch.setattr(console, "_PROGRESS_INTERVAL_SECONDS", 0)
    monkeypatch.setenv("COLUMNS", "200")
    with console.show_progress(quiet=False) as listener:
        StageReporter(listener).report_note(CONTROLS)
        StageReporter(listener).report_step(StageName.WHERE, 5, 7, CONTROLS)
    err = capsys.readouterr().err
    assert ESCAPED in err
    assert not {"\u202e", "\x85"} & set(err)
    assert "\x1b[2J" not in err
