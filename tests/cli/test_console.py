"""Progress as plain lines."""

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
