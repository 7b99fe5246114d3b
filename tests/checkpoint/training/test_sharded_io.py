"""Several ranks: each writes what it holds, and any number of them, or one process alone, goes on from it."""

import json
import logging
import random
import shutil
import time

import pytest
import safetensors.torch
import served
import torch
from messages import mentions
from projects import package, project
from several import NET, run, start
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from packager.checkpoint import CheckpointManager, read, run_folder
from packager.checkpoint.sharded_index import read_piece_index as read_index

pytestmark = pytest.mark.slow
KINDS = ["ddp", "fully_shard", "fsdp1", "fsdp1-original-mesh"]

FULL = """
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

def full(state):
    model, optimizer = state["model"], state["optimizer"]
    if count == 1:
        names = [name for name, _ in model.named_parameters()]
        moments = {names[number]: one for number, one in optimizer.state_dict()["state"].items()}
        return {"model": model.state_dict(), "ema": state["ema"].state_dict(), "moments": moments}
    whole = StateDictOptions(full_state_dict=True)
    moments = get_optimizer_state_dict(model, optimizer, options=whole)["state"]
    models = {name: get_model_state_dict(state[name], options=whole) for name in ("model", "ema")}
    return {**models, "moments": moments}
"""
SAVED = (
    FULL
    + """
from torch.distributed.tensor import DTensor
kind, = arguments
state = loop(kind, 0, average=True)
train(state, 3)
manager = CheckpointManager(folder, name="net", version="1.2.3", keep=Retention(metric="loss"))
gather, DTensor.full_tensor = DTensor.full_tensor, None  # nobody may put a tensor together
manager.save(step=3, epoch=1, **state, metrics={"loss": 2.0}, blocking=False, extra={"seen": torch.arange(3)})
manager.wait()
DTensor.full_tensor = gather
found = full(state)
if rank == 0:
    torch.save(found, folder / "full.pt")
expected = train(state, 3)
manager.save(step=6, epoch=2, **state, metrics={"loss": 1.0})
"""
)
RESTORED = (
    FULL
    + """
kind, = arguments
state = loop(kind, 100, average=True)
done = CheckpointManager(folder).restore(folder / "step-00000003", **state)
assert (done.step, done.epoch, done.extra["seen"].tolist()) == (3, 1, [0, 1, 2]), done
expected, found = torch.load(folder / "full.pt"), full(state)
if rank == 0:
    for part in ("model", "ema"):
        assert list(found[part]) == list(expected[part])
        for name, one in expected[part].items():
            assert torch.equal(found[part][name], one), (part, name)
    assert set(found["moments"]) == set(expected["moments"])
    for name, moments in expected["moments"].items():
        for key, one in moments.items():
            assert torch.equal(found["moments"][name][key], one), (name, key)
train(state, 2)
"""
)
RESUMED = """
other = loop(kind, 100, average=True)
CheckpointManager(folder).restore(folder / "step-00000003", **other)
assert train(other, 3) == expected, rank
print(expected)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The run of two ranks of each kind, made once."""
    folders = {}

    def of(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind) / "runs"
            run(2, SAVED, folders[kind], kind)
        return folders[kind]

    return of


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_go_on_as_if_nothing_had_happened(kind, tmp_path):
    first, second = run(2, SAVED + RESUMED, tmp_path, kind)
    assert first != second  # each rank drew numbers of its own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_ranks_gets_the_same_weights_and_moments(kind, count, saved):
    run(count, RESTORED, saved(kind), kind)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ddp", "fully_shard"),
        ("ddp", "fsdp1"),
        ("fully_shard", "ddp"),
        ("fully_shard", "fsdp1"),
        ("fsdp1", "fully_shard"),
    ],
)
def test_a_run_goes_on_spread_in_another_way(before, after, saved):
    run(2, RESTORED, saved(before), after)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_no_rank_writes_more_than_the_pieces_that_it_holds(kind, saved):
    folder = saved(kind) / "step-00000006"
    for part in ("model", "ema", "training"):
        index = read_index(folder / f"{part}.pieces.json")
        held = {"model.rank-00000.safetensors": 0, "model.rank-00001.safetensors": 0}
        held = {name.replace("model", part): 0 for name in held}
        for name, one in index.tensors.items():
            whole = torch.Size(one.shape).numel()
            for piece in one.pieces:
                held[piece.file] += torch.Size(piece.shape).numel()
                assert torch.Size(piece.shape).numel() < whole, name
        tensors = {name: safetensors.torch.load_file(folder / name) for name in held}
        assert {name: sum(one.numel() for one in found.values()) for name, found in tensors.items()} == held
        assert max(held.values()) < 0.7 * sum(held.values())
    assert set(safetensors.torch.load_file(folder / "model.safetensors")) == {
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip


def test_the_pieces_are_those_that_torch_s_own_storage_for_safetensors_reads(saved, tmp_path):
    for file in (saved("fully_shard") / "step-00000003").glob("model.rank-*"):
        shutil.copy(file, tmp_path)
    expected = torch.load(saved("fully_shard") / "full.pt")["model"]
    found = {
        name: torch.zeros_like(one) for name, one in expected.items() if "running" not in name and "num" not in name
    }
    dcp_load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert all(torch.equal(one, expected[name]) for name, one in found.items())


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_a_run_in_pieces_is_read_and_inspected_as_any_other(weights, saved):
    folder, expected = saved("fully_shard"), torch.load(saved("fully_shard") / "full.pt")[weights]
    for path in (folder / "step-00000003", folder / f"step-00000003/{weights}.pieces.json"):
        found = read(path, "ema" if path.is_dir() and weights == "ema" else "auto")
        assert set(found.state) == set(expected)
        assert all(torch.equal(one, expected[name]) for name, one in found.state.items())
        mentions(found.format, "2", "safetensors")
    assert read(folder / f"step-00000003/{weights}.safetensors").state.keys() == expected.keys()
    shown = json.loads(package("inspect", folder / "step-00000003", "--json").stdout)
    mentions(shown["format"], "2", "safetensors")
    assert shown["tensors"]["first.weight"] == "F32[7, 5]"
    assert set(shown["tensors"]) == set(expected)
    table = json.loads(package("inspect", folder, "--json").stdout)
    assert [one["step"] for one in table["checkpoints"]] == [3, 6]


@pytest.mark.parametrize("file", ["model.safetensors", "model.rank-00001.safetensors"])
def test_a_file_of_a_run_in_pieces_is_not_taken_for_the_whole(file, saved, tmp_path):
    content = (saved("fully_shard") / "step-00000003" / file).read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(content)
    with served.serving({file: content}) as server:
        for path in (tmp_path / "weights.safetensors", server.url(file)):
            answer = package("inspect", path)
            assert answer.returncode == 2
            said = "it is a part of a sharded checkpoint: name its model.pieces.json, or their folder"
            assert said in answer.stderr, answer.stderr
            assert answer.stdout == ""


def test_a_run_in_pieces_is_vetted_and_built(saved, tmp_path):
    path = project(
        tmp_path / "project", NET, entry="model.py:Net", inputs={"x": {"dtype": "float32", "shape": ["batch", 5]}},
        checkpoint={"path": "runs"},
    )  # fmt: skip
    shutil.copytree(saved("fsdp1"), path.parent / "runs")
    answer = package("vet", path)
    assert answer.returncode == 0, answer.stderr
    answer = package("build", path, "-o", tmp_path / "out")
    assert answer.returncode == 0, answer.stderr
    one_rank = path.parent / "runs/step-00000006/model.rank-00001.safetensors"
    path.write_text(path.read_text().replace("path: runs", f"path: {one_rank.relative_to(path.parent)}"))
    answer = package("vet", path)
    assert answer.returncode == 2
    mentions(answer.stderr, "model.pieces.json")


@pytest.mark.parametrize(
    ("file", "how"),
    [("model.rank-00001.safetensors", "gone"), ("training.pieces.json", "changed"), ("model.safetensors", "changed")],
)
def test_a_damaged_piece_is_passed_over_on_every_rank(file, how, saved, tmp_path):
    shutil.copytree(saved("fully_shard"), tmp_path / "runs")
    path = tmp_path / "runs/step-00000006" / file
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content) if how == "changed" else path.unlink()
    said = run(
        2,
        """
        assert CheckpointManager(folder).restore(**loop("fully_shard", 5)).step == 3
        try:
            CheckpointManager(folder).restore(folder / "step-00000006", **loop("fully_shard", 5))
        except CheckpointDamaged as error:
            print(error.why.partition("\\n")[0])
        """,
        tmp_path / "runs",
    )
    assert all(file in one or "SHA-256" in one or "No such file" in one for one in said), said
    if file != "training.pieces.json":
        assert run_folder.choose_checkpoint(tmp_path / "runs").checkpoint.step == 3


def test_an_error_on_one_rank_is_one_on_all_and_leaves_what_was_saved(tmp_path):
    said = run(
        2,
        """
        import resource
        state, manager = loop("fully_shard", 0), CheckpointManager(folder)
        manager.save(step=1, **state)
        for blocking in (True, False):
            if rank == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            try:
                manager.save(step=2, **state, blocking=blocking)
                manager.wait()
            except CheckpointNotSaved as error:
                print(error.why)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert [one.step for one in manager.list()] == [1]
        manager.save(step=3, **state)
        assert [one.step for one in manager.list()] == [1, 3]
        try:
            manager.save(step=4, **state, extra=print if rank == 1 else None)
        except StateNotExpressible as error:
            print(error.message)
        try:
            manager.save(step=4, **state, metrics={"loss": "low" if rank == 1 else 1.0})
        except StateNotExpressible as error:
            print(error.message)
        manager.close()
        """,
        tmp_path,
    )
    failed = "rank 1 of the run failed: OSError: [Errno 27] File too large\n"
    refused = "extra cannot be saved without pickle\nmetrics.loss cannot be saved without pickle\n"
    assert said == [2 * failed + refused] * 2
    assert sorted(one.name for one in tmp_path.iterdir()) == [".lock", "run.json", "step-00000001", "step-00000003"]


def test_what_cannot_be_written_in_pieces_is_refused_by_its_place(tmp_path, golden):
    said = run(
        2,
        """
        from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
        from torch.distributed.tensor.placement_types import _StridedShard
        mesh, model = distributed.init_device_mesh("cpu", (2,)), nn.Linear(1, 1)
        manager, numbers = CheckpointManager(folder), torch.zeros(6, dtype=torch.complex64)
        for wrong in (
            distribute_tensor(numbers, mesh, [Shard(0)]),
            DTensor.from_local(torch.ones(2), mesh, [Partial()]),
            DTensor.from_local(torch.ones(2), mesh, [_StridedShard(0, split_factor=1)], run_check=False),
        ):
            try:
                manager.save(step=1, model=model, extra={"seen": wrong})
            except StateNotExpressible as error:
                print(error.message, error.why, sep=": ")
        manager.save(step=2, model=model, extra={"seen": distribute_tensor(torch.arange(3), mesh, [Shard(0)])})
        assert manager.restore(model=model).extra["seen"].tolist() == [0, 1, 2]
        """,
        tmp_path,
    )
    golden("\n".join(said[0].splitlines()), "extra.seen", "torch.Tensor", "complex64", "_StridedShard")
    assert said[0] == said[1]


def test_a_manager_that_nobody_closed_lets_the_group_go_and_takes_the_next_one(tmp_path):
    said = run(
        2,
        """
        manager, state = CheckpointManager(folder / "runs"), loop("ddp", 0)
        manager.save(step=1, **state)
        print(manager.list()[-1].step, manager._ranks.is_over)
        model = state.pop("model").module  # DistributedDataParallel belongs to the group that ends here
        distributed.destroy_process_group()
        print(manager._ranks.is_over)
        distributed.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/second")
        manager.save(step=2, model=model, **state)
        print(manager.restore(model=model, **state).step, manager._ranks.is_over)
        """,
        tmp_path,
    )
    assert said == ["1 False\nTrue\n2 False\n"] * 2


def test_ranks_that_do_not_fit_are_refused_on_all_and_nothing_is_changed(saved, golden):
    said = run(
        2,
        """
        state = loop("fully_shard", 7)
        before = [one.to_local().clone() for one in state["model"].parameters()]
        first, *others = state["model"].parameters()
        groups = [{"params": [first]}, {"params": others}]
        state["optimizer"] = torch.optim.AdamW(groups if rank == 1 else [first, *others])
        try:
            CheckpointManager(folder).restore(**state)
        except TrainingStateDiffers as error:
            print(error.why)
        assert all(torch.equal(a, b.to_local()) for a, b in zip(before, state["model"].parameters()))
        """,
        saved("fully_shard"),
    )
    assert said[0] == said[1] and len(said) == 2
    golden(said[0], "optimizer", "1", "2")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_kill_of_any_rank_at_any_moment_leaves_the_last_good_checkpoint(killed, tmp_path, caplog):
    text = """
    state, manager = loop("fully_shard", 0), CheckpointManager(folder, keep=Retention(latest=2))
    for step in range(1, 1000):
        with torch.no_grad():
            for one in state["model"].parameters():
                one.fill_(step)
        manager.save(step=step, **state, blocking=bool(step % 2))
        if rank == 0:
            print(step, flush=True)
    """
    chance = random.Random(killed)
    for _ in range(3):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        ranks = start(2, text, tmp_path / "runs")
        for _ in range(3):  # steps before the last are complete
            assert ranks[0].stdout.readline(), ranks[0].stderr.read()
        time.sleep(chance.uniform(0, 0.05))
        ranks[killed].kill()
        said = [one.communicate(timeout=60) for one in ranks]
        assert ranks[1 - killed].returncode != 0
        assert "RankFailed" in said[1 - killed][1] or "CheckpointNotSaved" in said[1 - killed][1]
        done = [int(line) for line in said[0][0].split()]
        model = net()
        with caplog.at_level(logging.WARNING):
            step = CheckpointManager(tmp_path / "runs").restore(model=model).step
        assert step >= (max(done, default=3) - 1)
        assert all(bool((one == step).all()) for one in model.parameters())
        optimizer = torch.optim.AdamW(model.parameters())
        with CheckpointManager(tmp_path / "runs") as manager:  # and what was left behind is cleared
            manager.save(step=step + 1, model=model, optimizer=optimizer)
        names = [one.name for one in (tmp_path / "runs").iterdir()]
        assert not [name for name in names if name.startswith(".step")]


def net():
    return nn.ModuleDict(
        {"first": nn.Linear(5, 7), "norm": nn.BatchNorm1d(7), "inner": nn.Sequential(nn.Dropout(0.5), nn.Linear(7, 3))}
    )
