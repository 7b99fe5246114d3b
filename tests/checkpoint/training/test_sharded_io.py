"""Several ranks: each writes its shards, and any number of ranks, or one process alone, continues from them."""

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
        moments = {names[number]: values for number, values in optimizer.state_dict()["state"].items()}
        return {"model": model.state_dict(), "ema": state["ema"].state_dict(), "moments": moments}
    options = StateDictOptions(full_state_dict=True)
    moments = get_optimizer_state_dict(model, optimizer, options=options)["state"]
    models = {name: get_model_state_dict(state[name], options=options) for name in ("model", "ema")}
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
gather, DTensor.full_tensor = DTensor.full_tensor, None  # no tensor may be assembled
manager.save(step=3, epoch=1, **state, metrics={"loss": 2.0}, blocking=False, extra={"seen": torch.arange(3)})
manager.wait()
DTensor.full_tensor = gather
whole = full(state)
if rank == 0:
    torch.save(whole, folder / "full.pt")
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
expected, whole = torch.load(folder / "full.pt"), full(state)
if rank == 0:
    for part in ("model", "ema"):
        assert list(whole[part]) == list(expected[part])
        for name, tensor in expected[part].items():
            assert torch.equal(whole[part][name], tensor), (part, name)
    assert set(whole["moments"]) == set(expected["moments"])
    for name, moments in expected["moments"].items():
        for key, tensor in moments.items():
            assert torch.equal(whole["moments"][name][key], tensor), (name, key)
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
    """Return the folder of a run of two ranks of a kind; each run is made once."""
    folders = {}

    def run_of_kind(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind) / "runs"
            run(2, SAVED, folders[kind], kind)
        return folders[kind]

    return run_of_kind


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_continue_as_if_nothing_had_happened(kind, tmp_path):
    first, second = run(2, SAVED + RESUMED, tmp_path, kind)
    assert first != second  # each rank drew numbers of its own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_different_number_of_ranks_gets_the_same_weights_and_moments(kind, count, saved):
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
def test_a_run_continues_with_a_different_way_of_sharding(before, after, saved):
    run(2, RESTORED, saved(before), after)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_no_rank_writes_more_than_the_shards_that_it_holds(kind, saved):
    folder = saved(kind) / "step-00000006"
    for part in ("model", "ema", "training"):
        index = read_index(folder / f"{part}.pieces.json")
        counts = {f"{part}.rank-0000{rank}.safetensors": 0 for rank in range(2)}
        for name, tensor in index.tensors.items():
            whole = torch.Size(tensor.shape).numel()
            for piece in tensor.pieces:
                counts[piece.file] += torch.Size(piece.shape).numel()
                assert torch.Size(piece.shape).numel() < whole, name
        files = {name: safetensors.torch.load_file(folder / name) for name in counts}
        assert {name: sum(tensor.numel() for tensor in file.values()) for name, file in files.items()} == counts
        assert max(counts.values()) < 0.7 * sum(counts.values())
    assert set(safetensors.torch.load_file(folder / "model.safetensors")) == {
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip


def test_torch_s_own_storage_for_safetensors_reads_the_shards(saved, tmp_path):
    for file in (saved("fully_shard") / "step-00000003").glob("model.rank-*"):
        shutil.copy(file, tmp_path)
    expected = torch.load(saved("fully_shard") / "full.pt")["model"]
    targets = {
        name: torch.zeros_like(tensor)
        for name, tensor in expected.items()
        if "running" not in name and "num" not in name
    }
    dcp_load(targets, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in targets.items())


@pytest.mark.parametrize("weights", ["model", "ema"])
def test_a_run_in_pieces_is_read_and_inspected_as_any_other(weights, saved):
    folder, expected = saved("fully_shard"), torch.load(saved("fully_shard") / "full.pt")[weights]
    for path in (folder / "step-00000003", folder / f"step-00000003/{weights}.pieces.json"):
        checkpoint = read(path, "ema" if path.is_dir() and weights == "ema" else "auto")
        assert set(checkpoint.state) == set(expected)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in checkpoint.state.items())
        mentions(checkpoint.format, "2", "safetensors")
    assert read(folder / f"step-00000003/{weights}.safetensors").state.keys() == expected.keys()
    shown = json.loads(package("inspect", folder / "step-00000003", "--json").stdout)
    mentions(shown["format"], "2", "safetensors")
    assert shown["tensors"]["first.weight"] == "F32[7, 5]"
    assert set(shown["tensors"]) == set(expected)
    table = json.loads(package("inspect", folder, "--json").stdout)
    assert [row["step"] for row in table["checkpoints"]] == [3, 6]


@pytest.mark.parametrize("file", ["model.safetensors", "model.rank-00001.safetensors"])
def test_a_file_of_a_run_in_pieces_is_not_taken_for_the_whole(file, saved, tmp_path):
    content = (saved("fully_shard") / "step-00000003" / file).read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(content)
    with served.serving({file: content}) as server:
        for path in (tmp_path / "weights.safetensors", server.url(file)):
            answer = package("inspect", path)
            assert answer.returncode == 2
            message = "it is a part of a sharded checkpoint: name its model.pieces.json, or their folder"
            assert message in answer.stderr, answer.stderr
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
    ("file", "damage"),
    [("model.rank-00001.safetensors", "gone"), ("training.pieces.json", "changed"), ("model.safetensors", "changed")],
)
def test_a_checkpoint_with_a_damaged_shard_is_skipped_on_every_rank(file, damage, saved, tmp_path):
    shutil.copytree(saved("fully_shard"), tmp_path / "runs")
    path = tmp_path / "runs/step-00000006" / file
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content) if damage == "changed" else path.unlink()
    outputs = run(
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
    assert all(file in out or "SHA-256" in out or "No such file" in out for out in outputs), outputs
    if file != "training.pieces.json":
        assert run_folder.choose_checkpoint(tmp_path / "runs").checkpoint.step == 3


def test_an_error_on_one_rank_is_raised_on_all_and_leaves_what_was_saved(tmp_path):
    outputs = run(
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
            assert [entry.step for entry in manager.list()] == [1]
        manager.save(step=3, **state)
        assert [entry.step for entry in manager.list()] == [1, 3]
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
    refused = "cannot save extra without pickle\ncannot save metrics.loss without pickle\n"
    assert outputs == [2 * failed + refused] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "run.json", "step-00000001", "step-00000003"]


def test_a_tensor_that_cannot_be_written_in_shards_is_refused_by_its_path(tmp_path, golden):
    outputs = run(
        2,
        """
        from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
        from torch.distributed.tensor.placement_types import _StridedShard
        mesh, model = distributed.init_device_mesh("cpu", (2,)), nn.Linear(1, 1)
        manager, numbers = CheckpointManager(folder), torch.zeros(6, dtype=torch.complex64)
        for unsupported in (
            distribute_tensor(numbers, mesh, [Shard(0)]),
            DTensor.from_local(torch.ones(2), mesh, [Partial()]),
            DTensor.from_local(torch.ones(2), mesh, [_StridedShard(0, split_factor=1)], run_check=False),
        ):
            try:
                manager.save(step=1, model=model, extra={"seen": unsupported})
            except StateNotExpressible as error:
                print(error.message, error.why, sep=": ")
        manager.save(step=2, model=model, extra={"seen": distribute_tensor(torch.arange(3), mesh, [Shard(0)])})
        assert manager.restore(model=model).extra["seen"].tolist() == [0, 1, 2]
        """,
        tmp_path,
    )
    golden("\n".join(outputs[0].splitlines()), "extra.seen", "torch.Tensor", "complex64", "_StridedShard")
    assert outputs[0] == outputs[1]


def test_a_manager_that_was_not_closed_releases_its_group_and_uses_the_next_one(tmp_path):
    outputs = run(
        2,
        """
        manager, state = CheckpointManager(folder / "runs"), loop("ddp", 0)
        manager.save(step=1, **state)
        print(manager.list()[-1].step, manager._ranks.has_ended)
        model = state.pop("model").module  # DistributedDataParallel belongs to the group that ends here
        distributed.destroy_process_group()
        print(manager._ranks.has_ended)
        distributed.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/second")
        manager.save(step=2, model=model, **state)
        print(manager.restore(model=model, **state).step, manager._ranks.has_ended)
        """,
        tmp_path,
    )
    assert outputs == ["1 False\nTrue\n2 False\n"] * 2


def test_ranks_that_do_not_fit_are_refused_on_all_and_nothing_is_changed(saved, golden):
    outputs = run(
        2,
        """
        state = loop("fully_shard", 7)
        before = [parameter.to_local().clone() for parameter in state["model"].parameters()]
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
    assert outputs[0] == outputs[1] and len(outputs) == 2
    golden(outputs[0], "optimizer", "1", "2")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_kill_of_any_rank_at_any_moment_leaves_the_last_good_checkpoint(killed, tmp_path, caplog):
    text = """
    state, manager = loop("fully_shard", 0), CheckpointManager(folder, keep=Retention(latest=2))
    for step in range(1, 1000):
        with torch.no_grad():
            for parameter in state["model"].parameters():
                parameter.fill_(step)
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
        outputs = [process.communicate(timeout=60) for process in ranks]
        assert ranks[1 - killed].returncode != 0
        assert "RankFailed" in outputs[1 - killed][1] or "CheckpointNotSaved" in outputs[1 - killed][1]
        done = [int(line) for line in outputs[0][0].split()]
        model = net()
        with caplog.at_level(logging.WARNING):
            step = CheckpointManager(tmp_path / "runs").restore(model=model).step
        assert step >= (max(done, default=3) - 1)
        assert all(bool((parameter == step).all()) for parameter in model.parameters())
        optimizer = torch.optim.AdamW(model.parameters())
        with CheckpointManager(tmp_path / "runs") as manager:  # which clears what was left behind
            manager.save(step=step + 1, model=model, optimizer=optimizer)
        names = [path.name for path in (tmp_path / "runs").iterdir()]
        assert not [name for name in names if name.startswith(".step")]


def net():
    return nn.ModuleDict(
        {"first": nn.Linear(5, 7), "norm": nn.BatchNorm1d(7), "inner": nn.Sequential(nn.Dropout(0.5), nn.Linear(7, 3))}
    )
