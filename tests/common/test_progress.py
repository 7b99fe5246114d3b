"""The events of a build, and the names of its stages."""

import json

import pytest

from packager.common.progress import (
    Note,
    StageCached,
    StageFinished,
    StageName,
    StageProgressed,
    StageReporter,
    StageStarted,
)


@pytest.mark.parametrize("stage", StageName)
def test_a_stage_name_is_its_text_wherever_it_is_written(stage):
    assert f"{stage:<12}|" == f"{stage.value:<12}|"
    assert str(stage) == stage.value
    assert json.dumps({stage: stage}) == json.dumps({stage.value: stage.value})


def test_events_are_reported_in_order():
    events = []
    reporter = StageReporter(events.append)
    reporter.report_cached(StageName.REFERENCE)
    with reporter.stage(StageName.DOWNLOAD):
        reporter.report_progress(StageName.DOWNLOAD, 1, None)
        reporter.report_note("slow")
    assert events == [
        StageCached(StageName.REFERENCE),
        StageStarted(StageName.DOWNLOAD),
        StageProgressed(StageName.DOWNLOAD, 1, None),
        Note("slow"),
        StageFinished(StageName.DOWNLOAD, reporter.seconds["download"]),
    ]
    assert (reporter.seconds["reference"], reporter.cached) == (0.0, {"reference"})


def test_the_seconds_of_a_repeated_stage_add_up():
    reporter = StageReporter(lambda event: None)
    with reporter.stage(StageName.ONNX):
        pass
    first = reporter.seconds["onnx"]
    with reporter.stage(StageName.ONNX):
        pass
    assert reporter.seconds["onnx"] > first > 0.0


def test_a_stage_that_raises_is_not_reported_as_finished():
    events = []
    reporter = StageReporter(events.append)
    with pytest.raises(ValueError, match="broken"), reporter.stage(StageName.TRACE):
        raise ValueError("broken")
    assert events == [StageStarted(StageName.TRACE)]
    assert reporter.seconds == {}
