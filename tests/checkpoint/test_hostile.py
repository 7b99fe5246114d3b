"""Files that mean harm, or are broken: refused with the cause, and nothing in them is run."""

import argparse
import collections
import contextlib
import functools
import io
import json
import os
import pathlib
import pickle
import pickletools
import shutil
import time
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from messages import mentions
from projects import package, project
from torch.distributed.checkpoint.metadata import MetadataIndex

from packager import checkpoint
from packager.checkpoint.safetensors_header import read_header
from packager.cli.describe import inspect
from packager.cli.main import _run_command, cli
from packager.common.archive_directory import is_directory_too_long
from packager.errors import CheckpointNeedsCode, CheckpointNotFound, CheckpointUnreadable, WeightsNotFound, render_error

STATE = {"layer.weight": torch.arange(12.0).reshape(3, 4), "layer.bias": torch.tensor([1.0, 2.0, 3.0])}


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def nested(bomb):
    return {**STATE, "extra": [{"deep": ({"x": bomb},)}]}


def in_lightning(bomb):
    state = {f"model.{name}": tensor for name, tensor in STATE.items()}
    return {"state_dict": state, "hyper_parameters": {"lr": 0.1, "model": bomb}, "pytorch-lightning_version": "2.5.0"}


def as_tensor(bomb):
    return {**STATE, "layer.bias": bomb}


def refusal(path, kind=CheckpointUnreadable, **settings):
    with pytest.raises(kind) as caught:
        checkpoint.read(path, **settings)
    return caught.value


# -- code -----------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("hidden", [lambda bomb: bomb, nested, in_lightning, as_tensor])
def test_a_bomb_in_a_pytorch_file_is_not_run_wherever_it_is(tmp_path, hidden, zipped, protocol):
    path, marker = tmp_path / "best.pt", tmp_path / "marker"
    torch.save(hidden(Bomb(marker)), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    error = refusal(path, CheckpointNeedsCode)
    assert error.exit_status == 2
    mentions(error.why, f"{os.mkdir.__module__}.mkdir")
    assert not marker.exists()


def test_a_bomb_in_one_shard_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    torch.save({"layer.weight": STATE["layer.weight"]}, tmp_path / "a.bin")
    torch.save({"layer.bias": Bomb(marker)}, tmp_path / "b.bin")
    places = {"layer.weight": "a.bin", "layer.bias": "b.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    mentions(refusal(tmp_path, CheckpointNeedsCode).message, tmp_path / "b.bin")
    assert not marker.exists()


@pytest.fixture
def distributed(tmp_path):
    dcp.save({"model": STATE, "epoch": 3}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    return tmp_path / "dcp"


def test_a_bomb_in_the_metadata_of_a_distributed_checkpoint_is_not_run(tmp_path, distributed, golden):
    marker = tmp_path / "marker"
    metadata = pickle.loads((distributed / ".metadata").read_bytes())
    for bomb in (Bomb(marker), metadata):
        metadata.planner_data = {"model.layer.weight": Bomb(marker)}
        (distributed / ".metadata").write_bytes(pickle.dumps(bomb))
        for trust_pickle in (False, True):
            error = refusal(distributed, where="package.yaml:7: checkpoint.path", trust_pickle=trust_pickle)
            golden(
                render_error(error),
                "error[checkpoint-unreadable]",
                distributed,
                "package.yaml:7: checkpoint.path",
                ".metadata",
                f"{os.mkdir.__module__}.mkdir",
                "torch.distributed.checkpoint",
            )
            assert not marker.exists()


def test_a_bomb_in_an_object_of_a_distributed_checkpoint_is_not_run(tmp_path, golden):
    marker = tmp_path / "marker"
    dcp.save({"model": STATE, "config": Bomb(marker)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    error = refusal(tmp_path / "dcp", CheckpointNeedsCode)
    mentions(error.message, tmp_path / "dcp/__0_0.distcp")
    golden(error.why, f"{os.mkdir.__module__}.mkdir")
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_bomb_in_a_plain_pickle_is_not_run(tmp_path, protocol):
    path, marker = tmp_path / "best.pkl", tmp_path / "marker"
    path.write_bytes(pickle.dumps(nested(Bomb(marker)), protocol))
    error = refusal(path, CheckpointNeedsCode)
    assert f"{os.mkdir.__module__}.mkdir" in error.why
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        ("builtins", "eval"), ("os", "system"), ("builtins", "getattr"), ("torch", "load"), ("torch", "_utils.os"),
        ("torch.serialization", "load"), ("torch.distributed.checkpoint.metadata", "os.system"),
        ("pathlib", "Path.cwd"),
    ],
)  # fmt: skip
def test_the_metadata_of_a_distributed_checkpoint_looks_no_other_name_up(distributed, name):
    module, attribute = name
    parts = [bytes([0x8C, len(text)]) + text.encode() for text in (module, attribute)]
    (distributed / ".metadata").write_bytes(b"\x80\x04" + b"".join(parts) + b"\x93\x8c\x04true\x85R.")
    mentions(refusal(distributed).why, ".metadata", f"{module}.{attribute}")


def test_the_command_exits_with_2_and_runs_no_code(tmp_path):
    torch.save(Bomb(tmp_path / "marker"), tmp_path / "best.pt")
    done = package("inspect", tmp_path / "best.pt")
    assert (done.returncode, done.stdout) == (2, "")
    mentions(done.stderr, "error[checkpoint-needs-code]")
    assert not (tmp_path / "marker").exists()


def bomb_in_metadata(folder, bomb):
    dcp.save({"model": STATE}, checkpoint_id=folder, no_dist=True)
    (folder / ".metadata").write_bytes(pickle.dumps(bomb))


def cut(path, length):
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:length])


def index(folder, content):
    folder.mkdir()
    safetensors.torch.save_file({"layer.weight": STATE["layer.weight"]}, folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(content)


def circle(path):
    path.symlink_to("other")
    path.with_name("other").symlink_to(path.name)


TWICE = '{"weight_map": {"layer.weight": "one.safetensors", "layer.weight": "one.safetensors"}}'
HARM = {
    "a bomb": (lambda path, bomb: torch.save({**STATE, "x": bomb}, path), "checkpoint-needs-code"),
    "a nested bomb": (lambda path, bomb: torch.save(nested(bomb), path), "checkpoint-needs-code"),
    "a bomb in a Lightning file": (lambda path, bomb: torch.save(in_lightning(bomb), path), "checkpoint-needs-code"),
    "a bomb in a legacy file": (
        lambda path, bomb: torch.save({**STATE, "x": bomb}, path, _use_new_zipfile_serialization=False),
        "checkpoint-needs-code",
    ),
    "a bomb in DCP's metadata": (bomb_in_metadata, "checkpoint-unreadable"),
    "a file that is cut off": (lambda path, _: cut(path, -100), "checkpoint-unreadable"),
    "a file that is cut to its first bytes": (lambda path, _: cut(path, 10), "checkpoint-unreadable"),
    "an empty file": (lambda path, _: path.touch(), "checkpoint-unreadable"),
    "a shard that is missing": (
        lambda path, _: index(path, '{"weight_map": {"layer.weight": "gone.safetensors"}}'),
        "checkpoint-unreadable",
    ),
    "an index that leads outside": (
        lambda path, _: index(path, '{"weight_map": {"layer.weight": "../one.safetensors"}}'),
        "checkpoint-unreadable",
    ),
    "a key twice in an index": (lambda path, _: index(path, TWICE), "checkpoint-unreadable"),
    "a decompression bomb": (
        lambda path, _: rewritten(path, compression=zipfile.ZIP_DEFLATED),
        "checkpoint-unreadable",
    ),
    "an entry twice in an archive": (lambda path, _: rewritten(path, twice="data.pkl"), "checkpoint-unreadable"),
    "a link in a circle": (lambda path, _: circle(path), "checkpoint-unreadable"),
}


@pytest.mark.parametrize("name", HARM)
@pytest.mark.filterwarnings("ignore")
def test_a_hostile_file_ends_with_2_a_cause_and_a_hint_without_running_its_code(name, tmp_path, capsys, monkeypatch):
    manifest = project(tmp_path / "project", checkpoint={"path": "harm"}, state=STATE)
    make, code = HARM[name]
    make(manifest.parent / "harm", Bomb(tmp_path / "marker"))
    for arguments in (
        ["vet", manifest],
        ["build", manifest, "-o", tmp_path / "out"],
        ["inspect", tmp_path / "project/harm"],
    ):
        monkeypatch.setattr("sys.argv", ["package", *map(str, arguments)])
        assert _run_command(cli) == 2
        lines = capsys.readouterr().err.splitlines()
        first = next(number for number, line in enumerate(lines) if line.startswith("error["))
        mentions(lines[first], f"error[{code}]")
        assert lines[-1].startswith("hint: ")
        assert len(lines) - first > 2  # and why
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


HEADER = b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}'
SAFETENSORS = {
    "a header that claims more than the file holds": (10**6).to_bytes(8, "little") + b"{}",
    "a name twice in a header": b"\x0e\0\0\0\0\0\0\0" + b'{"a":1,"a":2} ',
    "tensors that claim more than the file holds": len(HEADER).to_bytes(8, "little") + HEADER,
    "a wrong digest": None,
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_with_false_claims_end_with_2(name, tmp_path, capsys, monkeypatch):
    content, pinned = SAFETENSORS[name], {} if SAFETENSORS[name] else {"sha256": "0" * 64}
    manifest = project(tmp_path, checkpoint={"path": "best.safetensors", **pinned}, state=STATE)
    if content is not None:
        (tmp_path / "best.safetensors").write_bytes(content)
    else:
        safetensors.torch.save_file(STATE, tmp_path / "best.safetensors")
    monkeypatch.setattr("sys.argv", ["package", "vet", str(manifest)])
    assert _run_command(cli) == 2
    stderr = capsys.readouterr().err
    expected = "checkpoint-unreadable" if content else "checkpoint-digest"
    mentions(stderr, f"error[{expected}")
    assert "hint: " in stderr


# -- archives -------------------------------------------------------------------------------


def rewritten(path, *, compression=zipfile.ZIP_STORED, twice=None):
    """A file of torch.save with the same entries in another archive."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(path, "w", compression) as other:
        for name in good.namelist():
            other.writestr(name, good.read(name))
            if twice is not None and name.endswith(twice):
                other.writestr(name, good.read(name))
    return path


def test_compressed_entries_are_refused_before_any_is_unpacked(tmp_path, golden):
    path = rewritten(tmp_path / "best.pt", compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/9", bytes(200_000_000))
    assert path.stat().st_size < 1_000_000
    golden(render_error(refusal(path)), "error[checkpoint-unreadable]", path, "archive/data.pkl")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("entry", ["data.pkl", "data/0"])
def test_an_entry_that_occurs_twice_is_refused(tmp_path, entry, golden):
    path = rewritten(tmp_path / "best.pt", twice=entry)
    golden(refusal(path).why, f"archive/{entry}")
    golden(refusal(path, trust_pickle=True).why, f"archive/{entry}")


def test_an_archive_that_claims_more_than_it_holds_is_refused(tmp_path, golden):
    path = rewritten(tmp_path / "best.pt")
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = (10**9).to_bytes(4, "little") * 2
    path.write_bytes(content)
    golden(refusal(path).why)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_hundreds_of_thousands_of_entries_is_refused_unread(tmp_path, monkeypatch, golden):
    path = rewritten(tmp_path / "best.pt")
    with zipfile.ZipFile(path, "a") as archive:
        for _ in range(30_000):
            archive.writestr("archive/data/" + "9" * 40, b"")
    monkeypatch.setattr(zipfile, "ZipFile", None)  # which would read the directory
    golden(render_error(refusal(path)), "error[checkpoint-unreadable]", path)


def test_the_directory_of_an_archive_with_zip64_records_is_measured(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(70_000):  # more than 65,535
            archive.writestr(f"{number}", b"")
    content = (tmp_path / "many.zip").read_bytes()
    assert b"PK\x06\x06" in content
    assert is_directory_too_long(io.BytesIO(content))
    lying = bytearray(content)
    lying[-10:-6] = (100).to_bytes(4, "little")  # only zipfile knows which of the two counts: the ZIP64 record does
    assert len(zipfile.ZipFile(io.BytesIO(lying)).namelist()) == 70_000
    assert is_directory_too_long(io.BytesIO(lying))
    assert not is_directory_too_long(io.BytesIO(b"PK"))


# -- memory that nothing was read into ------------------------------------------------------


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_tensor_of_memory_that_was_never_saved_is_refused(tmp_path, zipped, golden):
    """weights_only=True lets a pickle call torch.Tensor(n), which is n numbers of whatever the process left there."""
    path = tmp_path / "best.pt"
    hidden = {**STATE, "deep": [{"x": (Call(torch.Tensor, 1 << 20),)}]}
    torch.save(hidden, path, _use_new_zipfile_serialization=zipped)
    golden(render_error(refusal(path)), "error[checkpoint-unreadable]", path)
    assert checkpoint.read(path, trust_pickle=True).state["layer.bias"].tolist() == [1.0, 2.0, 3.0]


def test_tensors_that_share_their_memory_are_counted_once(tmp_path):
    shared = torch.arange(1000.0)
    state = {"a": shared, "b": shared[500:], "c": shared.view(10, 100), "d": torch.ones(1).expand(1000)}
    torch.save(state, tmp_path / "best.pt")
    assert checkpoint.read(tmp_path / "best.pt").state["d"].sum() == 1000


# -- chunks of torch.distributed.checkpoint -------------------------------------------------


def save_distributed(folder, value):
    dcp.save({"model": STATE, "value": value}, checkpoint_id=folder, no_dist=True)
    return folder


def test_a_bytearray_in_a_chunk_is_refused(tmp_path, golden):
    """It takes no bytes in the file, and 3 GB in memory."""
    folder = save_distributed(tmp_path / "dcp", Call(bytearray, 3 << 30))
    golden(render_error(refusal(folder)), "error[checkpoint-unreadable]", folder / "__0_0.distcp")


def test_memory_that_was_never_saved_is_refused_in_a_chunk(tmp_path, golden):
    golden(refusal(save_distributed(tmp_path / "dcp", Call(torch.Tensor, 1 << 20))).why)


def replace_chunk(folder, change):
    """Append what `change` makes of the first tensor's chunk to its file, and let the metadata name that."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    index = next(index for index in metadata.storage_data if "weight" in index.fqn)
    storage, file = metadata.storage_data[index], folder / "__0_0.distcp"
    content = file.read_bytes()
    chunk = change(content[storage.offset : storage.offset + storage.length])
    file.write_bytes(content + chunk)
    storage.offset, storage.length = len(content), len(chunk)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def deflated(chunk):
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(chunk)) as good, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as other:
        for name in good.namelist():
            other.writestr(name, good.read(name))
        other.writestr("archive/data/9", bytes(200_000_000))
    return buffer.getvalue()


def legacy(_chunk):
    buffer = io.BytesIO()
    torch.save(STATE["layer.weight"], buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("change", [deflated, legacy])
def test_a_chunk_is_checked_like_a_file_of_torch_save(distributed, change, golden):
    golden(render_error(refusal(replace_chunk(distributed, change))), distributed / "__0_0.distcp")


def test_a_chunk_that_was_only_moved_is_read(distributed):
    moved = checkpoint.read(replace_chunk(distributed, lambda chunk: chunk))
    assert torch.equal(moved.state["layer.weight"], STATE["layer.weight"])


def test_bytes_that_belong_to_two_chunks_are_refused(distributed, golden):
    """A hundred tensors of the same bytes are a hundred copies in memory."""
    metadata = pickle.loads((distributed / ".metadata").read_bytes())
    index, storage = next((index, storage) for index, storage in metadata.storage_data.items() if "weight" in index.fqn)
    for number in range(100):
        name = f"model.copy{number}"
        metadata.state_dict_metadata[name] = metadata.state_dict_metadata[index.fqn]
        metadata.storage_data[MetadataIndex(name, index.offset, index.index)] = storage
    (distributed / ".metadata").write_bytes(pickle.dumps(metadata))
    golden(refusal(distributed).why)


# -- safetensors ----------------------------------------------------------------------------


def with_header(path, header, data=bytes(24)):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


PLACE = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}


@pytest.mark.parametrize(
    ("header", "facts"),
    [
        (b'{"a": %s, "a": %s}' % ((json.dumps(PLACE).encode(),) * 2), ("a",)),
        (b"[]", ()),
        (b'{"a": 1}', ("a",)),
        (b"[" * 100_000, ()),
        (b"\xff\xfe", ("utf-8", "0xff", "0")),
    ],
)  # fmt: skip
def test_an_invalid_safetensors_header_is_refused(tmp_path, header, facts, golden):
    path = with_header(tmp_path / "best.safetensors", header)
    golden(refusal(path).why, *facts, "safetensors")


@pytest.mark.parametrize(
    "places",
    [
        {"a": {**PLACE, "data_offsets": [0, 12_000_000]}},  # beyond the end
        {"a": PLACE, "b": PLACE},  # one upon the other
        {"a": {**PLACE, "data_offsets": [12, 24]}},  # a hole
        {"a": {**PLACE, "shape": [4]}},  # more than its place
        {"a": {**PLACE, "shape": [2**62, 4]}},
        {"a": {**PLACE, "shape": [-3]}},
        {"a": {**PLACE, "dtype": []}},
        {"a": {**PLACE, "shape": "ab"}},
        {"a": {**PLACE, "shape": [-1, -3]}},
        {"a": {**PLACE, "shape": [3.0]}},
        {"a": {**PLACE, "data_offsets": [0, 12, 12]}},
        {"a": {**PLACE, "data_offsets": [0, 12.0]}},
        {"a": {**PLACE, "data_offsets": [False, 12]}},
        {"a": {**PLACE, "shape": [int("9" * 4000)] * 2_000}},  # whose product takes minutes
    ],
)
def test_tensors_at_offsets_that_do_not_fill_the_file_are_refused(tmp_path, places):
    path = with_header(tmp_path / "best.safetensors", places, data=bytes(12))
    refusal(path)
    with pytest.raises(ValueError, match="header"):
        read_header(path)


def test_a_dtype_that_no_library_has_is_refused(tmp_path):
    refusal(with_header(tmp_path / "best.safetensors", {"a": {**PLACE, "dtype": "F33"}}, data=bytes(12)))


def test_a_header_of_megabytes_is_refused_unread(tmp_path, golden):
    strings = {"__metadata__": {str(number): "x" * 80 for number in range(120_000)}}
    path = with_header(tmp_path / "best.safetensors", strings, data=b"")
    safetensors.torch.load_file(path)  # the library reads ten times as much
    golden(refusal(path).why)


@pytest.mark.parametrize("length", [2**63, 10**6, 17])
def test_a_header_longer_than_the_file_is_refused(tmp_path, length, golden):
    (tmp_path / "best.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    golden(refusal(tmp_path / "best.safetensors").why, "safetensors")


# -- what is no dense array of values ---------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "facts"),
    [
        (torch.eye(3).to_sparse(), ("layer.bias", "to_dense()")),
        (torch.eye(3).to_sparse_csr(), ("layer.bias", "to_dense()")),
        (torch.zeros(3, device="meta"), ("layer.bias", "meta")),
        (
            torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
            ("layer.bias", "dequantize()"),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_refused_by_name(tmp_path, tensor, facts, golden):
    torch.save({**STATE, "layer.bias": tensor}, tmp_path / "best.pt")
    golden(refusal(tmp_path / "best.pt").why, *facts)


# -- paths ----------------------------------------------------------------------------------


def test_a_circle_of_links_is_refused(tmp_path, golden):
    (tmp_path / "a.pt").symlink_to("b.pt")
    (tmp_path / "b.pt").symlink_to("a.pt")
    golden(refusal(tmp_path / "a.pt").why)


def test_a_dangling_link_is_reported_with_its_target(tmp_path, golden):
    (tmp_path / "best.pt").symlink_to("gone.pt")
    error = refusal(tmp_path / "best.pt", CheckpointNotFound)
    golden(error.why, "gone.pt")


# -- dicts that go round in circles -----------------------------------------------------------


@pytest.mark.timeout(30)
def test_dicts_that_contain_each_other_many_times_cost_no_time(tmp_path):
    shared = {"lr": 0.1}
    for _ in range(60):
        shared = {"a": shared, "b": shared}
    torch.save({"model": STATE, "config": shared, "more": shared}, tmp_path / "best.pt")
    assert set(checkpoint.read(tmp_path / "best.pt").state) == set(STATE)


def test_a_dict_that_contains_itself_is_read(tmp_path):
    own = {"lr": 0.1}
    own["self"] = own
    torch.save({"model": STATE, "config": own}, tmp_path / "best.pt")
    assert checkpoint.read(tmp_path / "best.pt").about.hyperparameters["lr"] == 0.1


# -- any bytes ------------------------------------------------------------------------------


@functools.cache
def contents():
    """One file of each form, as bytes by name."""
    files = {}
    for name, zipped in (("zip.pt", True), ("legacy.pt", False)):
        buffer = io.BytesIO()
        torch.save({"model": STATE, "epoch": 3}, buffer, _use_new_zipfile_serialization=zipped)
        files[name] = buffer.getvalue()
    files["one.safetensors"] = safetensors.torch.save(STATE, {"epoch": "3"})
    return files


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutated")
    dcp.save({"model": STATE, "epoch": 3}, checkpoint_id=folder / "dcp", no_dist=True)
    return folder


@given(data=st.data())
def test_any_change_of_bytes_is_read_or_refused(scratch, data):
    kind = data.draw(st.sampled_from([*contents(), ".metadata", "__0_0.distcp"]))
    path = scratch / "mutated" / kind
    shutil.rmtree(path.parent, ignore_errors=True)
    if kind in contents():
        path.parent.mkdir()
        content = bytearray(contents()[kind])
    else:
        shutil.copytree(scratch / "dcp", path.parent)
        content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 4))
        content[start : start + length] = data.draw(st.binary(max_size=6))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointUnreadable, CheckpointNeedsCode, CheckpointNotFound, WeightsNotFound):
        checkpoint.read(path if kind in contents() else path.parent)


LONG = b"A" * 200_000
LONG_CALLS = {
    "a name": b"\x80\x02ccollections\n" + LONG + b"\n.",
    "a name that is not ASCII": b"\x80\x02ccollections\n" + "\u00e9".encode() * 100_000 + b"\n.",
    "a string": b"\x80\x02X" + len(LONG).to_bytes(4, "little") + LONG + b")R.",
    "a string from the memo": b"\x80\x02X" + len(LONG).to_bytes(4, "little") + LONG + b"q\x00]h\x00)\x81.",
    "a list": b"\x80\x02](X" + len(LONG).to_bytes(4, "little") + LONG + b"e)R.",
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("content", LONG_CALLS.values(), ids=LONG_CALLS)
def test_a_call_of_something_long_is_refused_at_once(tmp_path, content, zipped):
    """Found by fuzzing: torch searches its own message in time quadratic in its length."""
    path = tmp_path / "best.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(path) as good:
            entries = {name: good.read(name) for name in good.namelist()}
        with zipfile.ZipFile(path, "w") as other:
            for name, entry in entries.items():
                other.writestr(name, content if name.endswith("data.pkl") else entry)
    else:
        stream = io.BytesIO(path.read_bytes())
        for _ in range(3):
            for _ in pickletools.genops(stream):
                pass
        path.write_bytes(stream.getvalue()[: stream.tell()] + content)
    start = time.process_time()
    mentions(refusal(path).why, "calls something that is not a function")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_long_string_beside_the_weights_is_read(tmp_path, zipped):
    settings = {"vocabulary": LONG.decode(), "args": argparse.Namespace(lr=0.1), "run": pathlib.PurePosixPath("runs/1")}
    saved = {"state_dict": collections.OrderedDict(STATE), "hyper_parameters": settings, "loss": np.float64(0.5)}
    torch.save(saved, tmp_path / "best.pt", _use_new_zipfile_serialization=zipped)
    assert set(checkpoint.read(tmp_path / "best.pt").state) == set(STATE)


@pytest.mark.parametrize("name", ["archive/a_data.pkl", "archive/DATA.PKL", "other/data.pkl"])
def test_a_second_pickle_does_not_hide_the_one_that_torch_reads(tmp_path, name):
    torch.save({**STATE, "value": bytearray(10)}, tmp_path / "hidden.pt")
    torch.save(STATE, tmp_path / "shown.pt")
    with zipfile.ZipFile(tmp_path / "hidden.pt") as hidden, zipfile.ZipFile(tmp_path / "shown.pt") as shown:
        entries = {f"archive/{entry.partition('/')[2]}": hidden.read(entry) for entry in hidden.namelist()}
        decoy = shown.read("shown/data.pkl")
    with zipfile.ZipFile(tmp_path / "best.pt", "w") as archive:
        archive.writestr("archive/byteorder", "little")
        archive.writestr(name, decoy)
        for entry, content in entries.items():
            if entry != "archive/byteorder":
                archive.writestr(entry, content)
    mentions(refusal(tmp_path / "best.pt").why, "several entries data.pkl")


# -- files that cost far more than they have bytes ------------------------------------------


def torch_file(path, operations, *, zipped):
    """Write what torch.save writes around a pickle of these operations."""
    content = b"\x80\x02" + operations + b"."
    if not zipped:
        torch.save({}, path, _use_new_zipfile_serialization=False)
        empty = pickle.dumps({}, 2)
        assert path.read_bytes().count(empty) == 1
        path.write_bytes(path.read_bytes().replace(empty, content))
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", b"3\n")
    return path


OPERATIONS = {"dicts": b"}", "marks": b"(", "tuples": b"N\x85", "names": b"X\1\0\0\0aN"}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_pickle_of_a_million_operations_is_refused_before_torch_reads_it(tmp_path, name, zipped, monkeypatch, golden):
    operations = b"}" + OPERATIONS[name] * 1_000_000
    path = torch_file(tmp_path / "best.pt", operations, zipped=zipped)
    monkeypatch.setattr(torch, "load", None)
    golden(refusal(path).why)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_model_of_thousands_of_small_tensors_is_read(tmp_path, zipped):
    state = {f"layers.{number}.weight": torch.zeros(8) for number in range(4000)}
    torch.save(state, tmp_path / "best.pt", _use_new_zipfile_serialization=zipped)
    assert len(checkpoint.read(tmp_path / "best.pt").state) == 4000


def test_the_operations_of_all_chunks_are_counted_together(tmp_path):
    folder = save_distributed(tmp_path / "dcp", [None] * 100_000)
    assert checkpoint.read(folder).state
    folder = save_distributed(tmp_path / "several", {f"list{number}": [None] * 100_000 for number in range(3)})
    mentions(refusal(folder).why, "save long lists as tensors")


def test_a_dcp_folder_of_thousands_of_small_tensors_is_read(tmp_path):
    state = {f"layers.{number}.weight": torch.zeros(4) for number in range(2500)}
    dcp.save({"model": state}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    assert len(checkpoint.read(tmp_path / "dcp").state) == 2500


@pytest.mark.parametrize("item", [b"}", b"N\x85", b"I0x1\n"], ids=["dicts", "tuples", "numbers only C reads"])
def test_metadata_of_a_million_operations_is_refused_unread(distributed, item, monkeypatch):
    (distributed / ".metadata").write_bytes(b"\x80\x02" + item * 1_000_000 + b".")
    monkeypatch.setattr("packager.checkpoint.dcp._RestrictedUnpickler", None)
    mentions(refusal(distributed).why, ".metadata cannot be read")


def test_an_archive_of_too_many_entries_is_refused_unread_wherever_it_begins(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(50_000):
            archive.writestr(f"archive/data/{number}", b"")
    (tmp_path / "best.pt").write_bytes(b"junk" + (tmp_path / "many.zip").read_bytes())
    opened = []
    monkeypatch.setattr(zipfile, "ZipFile", opened.append)
    with pytest.raises(CheckpointUnreadable) as caught:
        inspect(tmp_path / "best.pt")
    mentions(caught.value.why, "it does not start like a file of torch.save")
    assert not opened


def test_an_index_of_too_many_shards_is_refused(tmp_path):
    places = {f"t{number}": f"{number}.safetensors" for number in range(10_001)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    mentions(refusal(tmp_path / "model.safetensors.index.json").why, "more than 10000 shards")


def test_a_safetensors_file_of_more_tensors_than_its_size_allows_is_refused(tmp_path):
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"tensor{number}": tensor for number in range(50_000)}).encode()
    (tmp_path / "best.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    mentions(refusal(tmp_path / "best.safetensors").why, "values")


def test_a_safetensors_file_of_50_000_tensors_is_described(tmp_path):
    with (tmp_path / "best.safetensors").open("wb") as stream:
        header = json.dumps({
            f"model.layers.{n}.weight": {"dtype": "F32", "shape": [32, 32], "data_offsets": [4096 * n, 4096 * (n + 1)]}
            for n in range(50_000)
        }).encode()  # fmt: skip
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + 4096 * 50_000)
    assert len(read_header(tmp_path / "best.safetensors")) == 50_000
