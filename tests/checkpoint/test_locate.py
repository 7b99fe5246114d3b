"""Which files a checkpoint is, and their digest."""

import hashlib
import json
import subprocess

import pytest

from packager.checkpoint.locate import FileVersion, LocatedCheckpoint, digest_checkpoint, locate_files
from packager.common.hashing import sha256_file
from packager.errors import CheckpointNotFound, CheckpointUnreadable


def made(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


def index(folder, *shards, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"weight_map": dict(zip("abcdefgh", shards, strict=False))}))
    return folder / name


def names(located):
    return [file.relative_to(located.folder).as_posix() for file in located.files]


def test_a_file_is_itself_and_its_digest_is_the_file_s(tmp_path):
    path = made(tmp_path, "best.pt") / "best.pt"
    assert locate_files(path) == LocatedCheckpoint(path, (path,), {path: FileVersion.of(path)})
    assert digest_checkpoint(locate_files(path), sha256_file) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin", "config.json"], ["model.safetensors", "config.json"]),
        (["pytorch_model.bin", "config.json", "tokenizer.json"], ["pytorch_model.bin", "config.json"]),
        (["only.ckpt", "notes.txt"], ["only.ckpt"]),
        ([".metadata", "__0_0.distcp", "__1_0.distcp", "x.pt"], [".metadata", "__0_0.distcp", "__1_0.distcp"]),
    ],
)
def test_a_folder_is_what_its_content_says(tmp_path, there, expected):
    assert names(locate_files(made(tmp_path, *there))) == expected


def test_an_index_leads_to_its_shards_and_in_a_folder_to_the_configuration_too(tmp_path):
    made(tmp_path, "one.safetensors", "below/two.safetensors", "config.json")
    path = index(tmp_path, "one.safetensors", "below/two.safetensors", "one.safetensors")
    shards = ["model.safetensors.index.json", "below/two.safetensors", "one.safetensors"]
    assert names(locate_files(path)) == shards
    assert names(locate_files(tmp_path)) == [*shards, "config.json"]


def test_safetensors_come_before_pickles_of_the_same_weights(tmp_path):
    made(tmp_path, "a.safetensors", "a.bin", "pytorch_model.bin")
    index(tmp_path, "a.bin", name="pytorch_model.bin.index.json")
    index(tmp_path, "a.safetensors")
    assert names(locate_files(tmp_path)) == ["model.safetensors.index.json", "a.safetensors"]


def test_the_digest_of_several_files_is_that_of_the_lines_of_sha256sum(tmp_path):
    made(tmp_path, "one.safetensors", "below/two.safetensors")
    index(tmp_path, "one.safetensors", "below/two.safetensors")
    command = "sha256sum model.safetensors.index.json one.safetensors below/two.safetensors | sort | sha256sum"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    before = digest_checkpoint(locate_files(tmp_path), sha256_file)
    assert before == done.stdout.split()[0]
    (tmp_path / "below/two.safetensors").write_text("other")
    assert digest_checkpoint(locate_files(tmp_path), sha256_file) != before


@pytest.mark.parametrize(
    ("there", "facts"),
    [
        ([], ()),
        (["a.txt"], ()),
        (["a.pt", "b.pt"], ("2", "a.pt", "b.pt")),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            ("(PEFT)",),
        ),
    ],
)
def test_a_folder_that_is_no_checkpoint_says_why(tmp_path, there, facts, golden):
    with pytest.raises(CheckpointUnreadable) as caught:
        locate_files(made(tmp_path, *there), "runs", "package.yaml:7: checkpoint.path")
    golden(caught.value.message)
    golden(caught.value.why, *facts)
    assert caught.value.where == "package.yaml:7: checkpoint.path"


def test_a_folder_in_the_place_of_a_shard_is_refused(tmp_path, golden):
    (tmp_path / "one.safetensors").mkdir()
    with pytest.raises(CheckpointUnreadable) as caught:
        locate_files(index(tmp_path, "one.safetensors"))
    golden(caught.value.why, "one.safetensors")


def test_a_path_under_a_file_is_not_found(tmp_path):
    made(tmp_path, "best.pt")
    with pytest.raises(CheckpointNotFound):
        locate_files(tmp_path / "best.pt" / "deeper.pt")


@pytest.mark.parametrize("name", ["\0", "n" * 5000])
def test_a_path_that_cannot_be_is_refused(tmp_path, name):
    with pytest.raises(CheckpointUnreadable):
        locate_files(tmp_path / name)
