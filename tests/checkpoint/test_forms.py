"""Every form of checkpoint, written here by the library that writes it; docs/checkpoints.md lists them by test."""

import argparse
import functools
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch_ema import ExponentialMovingAverage

from packager import checkpoint
from packager.checkpoint.metadata import About
from packager.errors import CheckpointNeedsCode, CheckpointUnreadable, WeightsNotFound, render_error


class Net(nn.Module):
    """Parameters, and buffers of all kinds of dtype."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.layer(x))


@pytest.fixture
def trained():
    """A module and its optimizer and scheduler after a step."""
    torch.manual_seed(0)
    module = Net()
    optimizer = torch.optim.AdamW(module.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step(module, optimizer)
    scheduler.step()
    return module, optimizer, scheduler


def step(module, optimizer):
    module(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()


SHAPES = {name: tuple(tensor.shape) for name, tensor in Net().state_dict().items()}


def fits(read, module, **settings):
    """Whether what was read is the module's state, name by name, once it is fitted."""
    result = checkpoint.fit(read.state, SHAPES, **settings).state
    own = module.state_dict()
    return set(result) == set(own) and all(torch.equal(result[name], tensor) for name, tensor in own.items())


# -- PyTorch files --------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", ["model_state_dict", "state_dict", "model_state", "model", "net", "weights"])
def test_a_training_script_s_checkpoint_is_described_with_what_lies_beside_its_weights(tmp_path, trained, key, zipped):
    module, optimizer, scheduler = trained
    saved = {
        "epoch": 3,
        "global_step": 120,
        key: module.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler_state_dict": scheduler.state_dict(),
        "loss": 0.25,
        "best_acc": torch.tensor(0.5),
        "metrics": {"f1": np.float32(0.75), "auc": float("nan")},
        "config": {"lr": 1e-3, "layers": [4, 3], "name": "net", "deep": {"a": None}},
    }
    torch.save(saved, tmp_path / "best.pt", _use_new_zipfile_serialization=zipped)
    result = checkpoint.read(tmp_path / "best.pt")
    assert fits(result, module)
    assert (result.key, result.format) == (key, "pytorch")
    assert result.about == About(
        epoch=3,
        step=120,
        metrics={"loss": 0.25, "best_acc": 0.5, "f1": 0.75, "auc": "nan"},
        hyperparameters={"lr": 1e-3, "layers": [4, 3], "name": "net", "deep": {"a": None}},
        optimizer=True,
        scheduler=True,
        ema=False,
    )
    json.dumps(result.about.as_json(), allow_nan=False)


def test_a_bare_state_dict_has_nothing_beside_it(tmp_path, trained):
    torch.save(trained[0].state_dict(), tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt")
    assert fits(result, trained[0])
    assert (result.key, result.beside, result.about) == ("", (), About())


def test_hyperparameters_from_argparse_paths_and_numpy_arrays_are_plain_values(tmp_path, trained):
    settings = argparse.Namespace(lr=0.1, out=pathlib.Path("runs") / "a", seed=np.int64(7))
    saved = {"model": trained[0].state_dict(), "args": settings, "history": np.arange(3.0), "best_acc": np.float64(0.5)}
    torch.save(saved, tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt").about
    assert result.hyperparameters == {"lr": 0.1, "out": "runs/a", "seed": 7}
    assert result.metrics == {"best_acc": 0.5}


def test_an_optimizer_under_a_hyperparameter_key_is_reported_but_not_shown(tmp_path, trained):
    torch.save({"net": trained[0].state_dict(), "opt": trained[1].state_dict()}, tmp_path / "best.pt")
    assert checkpoint.read(tmp_path / "best.pt").about == About(optimizer=True)


@pytest.mark.slow  # importing it takes seconds
def test_a_lightning_file_is_read_and_shows_its_hyperparameters(tmp_path):
    import pytorch_lightning as lightning
    from pytorch_lightning.callbacks import ModelCheckpoint

    class Task(lightning.LightningModule):
        def __init__(self, lr, width):
            super().__init__()
            self.save_hyperparameters()
            self.model = Net()

        def training_step(self, batch):
            return self.model(batch).square().sum()

        def validation_step(self, batch):
            self.log("val_loss", self.model(batch).square().mean())

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    keep = ModelCheckpoint(tmp_path, filename="best", monitor="val_loss")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    task = Task(lr=0.01, width=64)
    data = torch.utils.data.DataLoader(torch.randn(12, 4), batch_size=4)
    trainer = lightning.Trainer(max_epochs=2, callbacks=[keep], **quiet)
    trainer.fit(task, data, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    result = checkpoint.read(tmp_path / "last.ckpt")
    assert fits(result, task.model)
    assert result.about == About(
        epoch=trainer.current_epoch,
        step=6,
        metrics={"best_model_score": keep.best_model_score.item()},
        hyperparameters={"lr": 0.01, "width": 64},
        optimizer=True,
        scheduler=True,
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_whole_module_is_refused_with_the_classes_it_needs_unless_it_is_trusted(tmp_path, trained, zipped):
    path = tmp_path / "best.pt"
    torch.save({"model": trained[0], "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointNeedsCode) as caught:
        checkpoint.read(path)
    asked = re.findall(r"[\w.]+", caught.value.why)
    assert f"{Net.__module__}.Net" in asked
    if zipped:
        assert {"torch.nn.modules.linear.Linear", "torch.nn.modules.batchnorm.BatchNorm1d"} <= set(asked)
    result = checkpoint.read(path, trust_pickle=True)
    assert fits(result, trained[0])
    assert (result.key, result.about.epoch) == ("model", 3)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_that_was_saved_on_cuda_is_loaded_to_the_cpu(tmp_path, monkeypatch, zipped):
    # There is no such device here: torch is told that these tensors are on one when it asks for the tag it writes.
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
    state = {"weight": torch.arange(4.0)}
    torch.save(state, tmp_path / "best.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    result = checkpoint.read(tmp_path / "best.pt").state["weight"]
    assert result.device.type == "cpu"
    assert torch.equal(result, state["weight"])


# -- safetensors ----------------------------------------------------------------------------


def test_a_safetensors_file_is_described_by_its_metadata(tmp_path, trained):
    metadata = {"epoch": "3", "global_step": "70", "format": "pt"}
    safetensors.torch.save_file(trained[0].state_dict(), tmp_path / "best.safetensors", metadata)
    result = checkpoint.read(tmp_path / "best.safetensors")
    assert fits(result, trained[0])
    assert result.metadata == metadata
    assert (result.about.epoch, result.about.step) == (3, 70)


def sharded(folder, module, suffix="safetensors"):
    """Two shards and their index, as Hugging Face's libraries lay them out."""
    folder.mkdir()
    state = module.state_dict()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    places = {name: names[position % 2] for position, name in enumerate(state)}
    for shard in names:
        part = {name: tensor for name, tensor in state.items() if places[name] == shard}
        (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(part, folder / shard)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("name", ["best.meta", "best.safetensors.meta"])
def test_a_meta_file_beside_safetensors_is_ignored(tmp_path, trained, name):
    safetensors.torch.save_file(trained[0].state_dict(), tmp_path / "best.safetensors")
    (tmp_path / name).write_text('{"epoch": 3}')
    for path in (tmp_path, tmp_path / "best.safetensors"):
        assert fits(checkpoint.read(path), trained[0])


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_read_by_their_index_or_their_folder(tmp_path, trained, suffix):
    index = sharded(tmp_path / "out", trained[0], suffix)
    for path in (index, index.parent):
        result = checkpoint.read(path)
        assert fits(result, trained[0])
    mentions(result.format, "pytorch" if suffix == "bin" else "safetensors", "2")


def test_the_shards_that_huggingface_hub_writes_are_read(tmp_path, trained):
    hub = pytest.importorskip("huggingface_hub")
    hub.save_torch_state_dict(trained[0].state_dict(), tmp_path, max_shard_size=40)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert fits(checkpoint.read(tmp_path), trained[0])


def refusal(path, kind=CheckpointUnreadable, **settings):
    with pytest.raises(kind) as caught:
        checkpoint.read(path, **settings)
    return caught.value


def test_a_shard_that_is_missing_is_refused(tmp_path, trained, golden):
    index = sharded(tmp_path / "out", trained[0])
    (index.parent / "model-00002-of-00002.safetensors").unlink()
    golden(render_error(refusal(index)), "error[checkpoint-unreadable]", index, "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/../../x.safetensors", "..\\x", "C:\\x", ""]
)
def test_an_index_that_names_a_path_outside_its_folder_is_refused(tmp_path, trained, name, golden):
    index = sharded(tmp_path / "out", trained[0])
    shutil.copy(index.parent / "model-00001-of-00002.safetensors", tmp_path / "secret.safetensors")
    index.write_text(json.dumps({"weight_map": {"layer.weight": name}}))
    golden(refusal(index).why, "model.safetensors.index.json", f"{name!r}")


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("{", ("1", "2")),
        ("{}", ("weight_map",)),
        ('{"weight_map": {}}', ("weight_map",)),
        ('{"weight_map": {"a": 1}}', ("weight_map",)),
        ('{"weight_map": {"a": "x", "a": "y"}}', ("a",)),
        ("[" * 100_000, ()),
    ],
)
def test_an_invalid_index_is_refused(tmp_path, content, facts, golden):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    golden(refusal(tmp_path).why, "model.safetensors.index.json", *facts)


def test_an_index_that_lists_a_tensor_its_shard_lacks_is_refused(tmp_path, trained, golden):
    index = sharded(tmp_path / "out", trained[0])
    content = json.loads(index.read_text())
    content["weight_map"]["extra"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    golden(refusal(index).why, "model.safetensors.index.json", "model-00001-of-00002.safetensors", "extra")


def test_a_folder_with_several_files_of_weights_asks_for_one(tmp_path, trained, golden):
    for name in ("epoch1.pt", "epoch2.pt"):
        torch.save(trained[0].state_dict(), tmp_path / name)
    golden(refusal(tmp_path).why, "2", "epoch1.pt", "epoch2.pt")
    (tmp_path / "epoch1.pt").unlink()
    assert fits(checkpoint.read(tmp_path), trained[0])


# -- torch.distributed.checkpoint -----------------------------------------------------------


@pytest.fixture
def distributed(tmp_path, trained):
    """A folder that torch.distributed.checkpoint wrote."""
    module, optimizer, _ = trained
    saved = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": torch.tensor(0.5)}
    dcp.save(saved, checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def test_a_folder_of_torch_distributed_checkpoint_is_read(distributed, trained):
    result = checkpoint.read(distributed)
    assert fits(result, trained[0])
    assert (result.key, result.format) == ("model", "torch.distributed.checkpoint")
    assert result.about == About(epoch=3, metrics={"loss": 0.5}, optimizer=True)


def test_a_flat_state_dict_of_torch_distributed_checkpoint_is_read(tmp_path, trained):
    dcp.save(trained[0].state_dict(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert fits(checkpoint.read(tmp_path / "dcp"), trained[0])


def save_in_chunks(rank, folder):
    """One of two processes, each with its rows of a tensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole = {"weight": torch.arange(20.0).reshape(5, 4), "wide": torch.arange(6.0).reshape(2, 3)}
    state = {
        "weight": distribute_tensor(whole["weight"], mesh, [Shard(0)]),
        "wide": distribute_tensor(whole["wide"], mesh, [Shard(1)]),
    }
    dcp.save(state, checkpoint_id=f"{folder}/dcp")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_chunks_that_two_processes_wrote_are_assembled(tmp_path):
    torch.multiprocessing.spawn(save_in_chunks, (str(tmp_path),), nprocs=2)
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 2
    state = checkpoint.read(tmp_path / "dcp").state
    assert torch.equal(state["weight"], torch.arange(20.0).reshape(5, 4))
    assert torch.equal(state["wide"], torch.arange(6.0).reshape(2, 3))


def test_a_distributed_checkpoint_without_one_of_its_files_is_refused(distributed, golden):
    (distributed / "__0_0.distcp").unlink()
    golden(refusal(distributed).why, "torch.distributed.checkpoint", "__0_0.distcp")


def test_a_truncated_distributed_checkpoint_is_refused(distributed, golden):
    file = distributed / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    golden(refusal(distributed).why, "torch.distributed.checkpoint", "__0_0.distcp")
    metadata = (distributed / ".metadata").read_bytes()
    for length in range(1, len(metadata), 97):
        (distributed / ".metadata").write_bytes(metadata[:length])
        assert isinstance(refusal(distributed), CheckpointUnreadable)


def test_metadata_that_names_a_file_outside_its_folder_is_refused(distributed, golden):
    content = (distributed / ".metadata").read_bytes()
    assert content.count(b"__0_0.distcp") == 1
    (distributed / ".metadata").write_bytes(content.replace(b"__0_0.distcp", b"../../passwd"))
    golden(refusal(distributed).why, "torch.distributed.checkpoint", "../../passwd")


# -- wrappers -------------------------------------------------------------------------------


def data_parallel(module):
    return nn.DataParallel(module)


def compiled(module):
    return module if isinstance(module, torch._dynamo.OptimizedModule) else torch.compile(module)  # twice is no module


class Lightning(nn.Module):
    """As a LightningModule holds what it trains."""

    def __init__(self, module):
        super().__init__()
        self.model = module


class FSDP(nn.Module):
    """As FullyShardedDataParallel registers what it wraps."""

    def __init__(self, module):
        super().__init__()
        self._fsdp_wrapped_module = module


WRAPPERS = [data_parallel, compiled, Lightning, FSDP]


@given(
    st.lists(st.sampled_from(WRAPPERS), max_size=5),
    st.lists(st.sampled_from([data_parallel, compiled, FSDP]), max_size=2),
)
def test_any_nesting_of_wrappers_around_the_whole_and_a_part_is_stripped(outside, inside):
    module = Net()
    plain = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.layer = functools.reduce(lambda inner, wrap: wrap(inner), inside, module.layer)
    wrapped = functools.reduce(lambda inner, wrap: wrap(inner), outside, module)
    result = checkpoint.fit(wrapped.state_dict(), SHAPES)
    assert set(result.state) == set(plain)
    assert all(torch.equal(result.state[name], tensor) for name, tensor in plain.items())


def test_the_prefix_of_distributed_data_parallel_is_stripped(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        module = Net()
        state = nn.parallel.DistributedDataParallel(module).state_dict()
    finally:
        torch.distributed.destroy_process_group()
    assert checkpoint.fit(state, SHAPES).prefix == "module."


def test_the_prefix_of_activation_checkpointing_around_a_part_is_stripped():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    module = Net()
    module.layer = checkpoint_wrapper(module.layer)
    state = {f"_checkpoint_wrapped_module.{name}": tensor for name, tensor in module.state_dict().items()}
    assert set(checkpoint.fit(state, SHAPES).state) == set(SHAPES)


# -- averaged weights -----------------------------------------------------------------------


@pytest.fixture
def averaged(trained):
    """torch's own average of the parameters, after two updates."""
    module, optimizer, _ = trained
    result = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(2):
        step(module, optimizer)
        result.update_parameters(module)
    return result


@pytest.mark.parametrize("weights", ["auto", "ema"])
def test_the_state_of_an_averaged_model_alone_is_read(tmp_path, averaged, weights):
    torch.save(averaged.state_dict(), tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt", weights)
    assert fits(result, averaged.module)
    assert (result.beside, result.about.ema) == (("n_averaged",), True)


@pytest.mark.parametrize("key", ["ema", "swa_model", "averaged_model", "state_dict_ema"])
def test_the_state_of_an_averaged_model_beside_the_model_s_is_read(tmp_path, trained, averaged, key):
    torch.save({"model": trained[0].state_dict(), key: averaged.state_dict()}, tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt", "ema")
    assert fits(result, averaged.module)
    assert (result.key, result.about.ema) == (key, True)
    assert fits(checkpoint.read(tmp_path / "best.pt"), trained[0])


@pytest.mark.parametrize("nested", [True, False])
def test_a_shadow_of_the_parameters_takes_its_buffers_from_the_model(tmp_path, trained, averaged, nested):
    module = trained[0]
    shadow = {name: tensor.detach().clone() for name, tensor in averaged.module.named_parameters()}
    saved = {"shadow": shadow} if not nested else {"ema": {"decay": 0.9, "shadow": shadow}}
    torch.save({"model": module.state_dict(), **saved}, tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt", "ema")
    assert result.from_model_weights == ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
    assert result.key == ("ema.shadow" if nested else "shadow")
    expected = {**module.state_dict(), **shadow}
    assert all(torch.equal(result.state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("key", ["ema", "ema_state_dict"])
def test_averaged_parameters_without_buffers_take_them_from_the_model_whatever_their_key(
    tmp_path, trained, averaged, key
):
    module = trained[0]
    shadow = {name: tensor.detach().clone() for name, tensor in averaged.module.named_parameters()}
    torch.save({"model": module.state_dict(), key: shadow}, tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt", "ema")
    assert (result.key, result.from_model_weights) == (
        key,
        ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
    )
    assert all(torch.equal(result.state[name], tensor) for name, tensor in {**module.state_dict(), **shadow}.items())


def test_the_list_of_torch_ema_gets_the_names_of_the_model_s_parameters(tmp_path, trained, golden):
    module, optimizer, _ = trained
    average = ExponentialMovingAverage(module.parameters(), decay=0.9)
    for _ in range(2):
        step(module, optimizer)
        average.update()
    saved = {"model": module.state_dict(), "ema": average.state_dict()}
    torch.save(saved, tmp_path / "best.pt")
    result = checkpoint.read(tmp_path / "best.pt", "ema")
    with average.average_parameters():
        assert fits(result, module)
    assert not fits(result, module)
    saved["ema"]["shadow_params"].pop()
    torch.save(saved, tmp_path / "best.pt")
    golden(
        render_error(refusal(tmp_path / "best.pt", WeightsNotFound, weights="ema")),
        "error[weights-not-found]",
        "checkpoint.weights",
        "ema.shadow_params",
        "3",
        "4",
        "ema.copy_to()",
        "state_dict()",
    )
