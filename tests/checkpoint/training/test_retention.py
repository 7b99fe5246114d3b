"""Which checkpoints are deleted: properties of one pure function."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.checkpoint import run_folder
from packager.checkpoint.run_folder import CheckpointEntry
from packager.checkpoint.training.retention import Retention, select_deletions
from packager.errors import RunSettingsWrong, render_error


def saved(number, step, epoch=None, **metrics):
    path = Path(run_folder.checkpoint_folder_name(step))
    return CheckpointEntry(
        path=path, number=number, step=step, epoch=epoch, metrics=metrics, name="net",
        version="1.0.0", created="", revision=None, parameters=0, digests={}, bytes=0, history=(),
    )  # fmt: skip


losses = st.one_of(st.none(), st.floats(), st.integers(0, 3).map(float))
counts = st.one_of(st.none(), st.integers(1, 5))


@st.composite
def runs(draw):
    """Checkpoints in the order they were saved; after a restore, an earlier step may be saved later."""
    steps = draw(st.lists(st.integers(0, 40), unique=True, max_size=12))
    entries = []
    for number, step in enumerate(steps, 1):
        loss = draw(losses)
        epoch = draw(st.one_of(st.none(), st.just(step // 4)))
        entries.append(saved(number, step, epoch, **({} if loss is None else {"loss": loss})))
    return entries


@st.composite
def rules(draw):
    metric = draw(st.sampled_from([None, "loss"]))
    return Retention(
        latest=draw(counts),
        best=draw(counts) if metric else None,
        top_k=draw(counts) if metric else None,
        metric=metric,
        mode=draw(st.sampled_from(["min", "max"])),
        every_epochs=draw(counts),
        every_steps=draw(counts),
    )


used = st.sets(st.integers(0, 40), max_size=3)


@given(runs(), rules(), used)
def test_neither_the_latest_nor_the_best_nor_one_being_read_is_deleted(run, keep, in_use):
    deleted = select_deletions(run, keep, in_use)
    assert run_folder.find_latest(run) not in deleted
    if keep.metric:
        assert run_folder.find_best(run, keep.metric, keep.mode) not in deleted
    assert not {entry.step for entry in deleted} & in_use


@given(runs(), rules(), used)
def test_what_a_rule_wants_stays(run, keep, in_use):
    deleted = select_deletions(run, keep, in_use)
    if keep.latest:
        assert not [entry for entry in run[-keep.latest :] if entry in deleted]
    if keep.every_steps:
        assert all(entry.step % keep.every_steps for entry in deleted)
    if keep.every_epochs:
        for epoch in {entry.epoch for entry in run if entry.epoch is not None and entry.epoch % keep.every_epochs == 0}:
            assert [entry for entry in run if entry.epoch == epoch][-1] not in deleted
    measured = sorted(
        (entry.metrics["loss"] if keep.mode == "min" else -entry.metrics["loss"])
        for entry in run
        if entry.metrics.get("loss", float("nan")) == entry.metrics.get("loss")
    )
    for top in (keep.best, keep.top_k):
        kept = [entry.metrics["loss"] for entry in run if entry not in deleted and "loss" in entry.metrics]
        signed = sorted((loss if keep.mode == "min" else -loss) for loss in kept if loss == loss)
        if top:
            assert signed[:top] == measured[:top]


@given(runs(), rules(), used)
def test_what_no_rule_wants_is_deleted(run, keep, in_use):
    kept = [entry for entry in run if entry not in select_deletions(run, keep, in_use)]
    counted = [keep.latest, keep.best, keep.top_k]
    if any(counted) and not keep.every_epochs and not keep.every_steps:
        most = max(1, keep.latest or 0) + len(in_use)
        most += max(1, keep.best or 0, keep.top_k or 0) if keep.metric else 0
        assert len(kept) <= most


@given(runs(), rules(), used)
def test_a_second_selection_deletes_nothing_more(run, keep, in_use):
    kept = [entry for entry in run if entry not in select_deletions(run, keep, in_use)]
    assert select_deletions(kept, keep, in_use) == []


@given(runs(), used)
def test_without_a_rule_nothing_is_deleted(run, in_use):
    assert select_deletions(run, Retention(metric="loss"), in_use) == []


def test_the_latest_is_the_one_saved_last_whatever_its_step():
    run = [saved(1, 10), saved(2, 20), saved(3, 30), saved(4, 11)]
    assert [entry.step for entry in select_deletions(run, Retention(latest=2))] == [10, 20]


def test_the_checkpoint_of_an_epoch_that_was_saved_last_stays():
    run = [saved(1, 1, 0), saved(2, 2, 0), saved(3, 3, 1), saved(4, 4, 2), saved(5, 5, 2), saved(6, 6, 3)]
    assert [entry.step for entry in select_deletions(run, Retention(latest=1, every_epochs=2))] == [1, 3, 4]


def test_the_earlier_of_equals_is_best_and_nan_never_is():
    run = [saved(1, 1, loss=float("nan")), saved(2, 2, loss=1.0), saved(3, 3, loss=1.0), saved(4, 4)]
    assert [entry.step for entry in select_deletions(run, Retention(latest=1, metric="loss"))] == [1, 3]
    assert run_folder.find_best(run, "loss", "max").step == 2


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"latest": 0}, ("0", "1", "latest")),
        ({"every_steps": 1.5}, ("every_steps", "1.5", "1")),
        ({"best": 1}, ("best",)),
        ({"top_k": 2}, ("top_k",)),
        ({"mode": "lowest"}, ("lowest", "min", "max", "mode")),
    ],
)
def test_rules_that_make_no_sense_are_refused(settings, facts, golden):
    with pytest.raises(RunSettingsWrong) as caught:
        Retention(**settings)
    golden(render_error(caught.value), "error[run-settings]", *facts)
