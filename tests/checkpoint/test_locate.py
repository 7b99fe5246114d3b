"""The files that a path stands for, and their digest."""

import hashlib
import json
import subprocess

import pytest

from packager.checkpoint.locate import FileVersion, LocatedCheckpoint, digest_checkpoint, locate_files
from packager.common.hashing import sha256_file
from packager.errors import CheckpointNotFound, CheckpointUnreadable


def write_files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    return folder


def write_index(folder, *shards, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"weight_map": dict(zip("abcdefgh", shards, strict=False))}))
    return folder / name


def names(located):
    return [file.relative_to(located.folder).as_posix() for file in located.files]


def test_a_file_stands_for_itself_and_has_its_own_digest(tmp_path):
    path = write_files(tmp_path, "best.pt") / "best.pt"
    assert locate_files(path) == LocatedCheckpoint(path, (path,), {path: FileVersion.of(path)})
    assert digest_checkpoint(locate_files(path), sha256_file) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin", "config.json"], ["model.safetensors", "config.json"]),
        (["pytorch_model.bin", "config.json", "tokenizer.json"], ["pytorch_model.bin", "config.json"]),
        (["only.ckpt", "notes.txt"], ["only.ckpt"]),
        ([".metadata", "__0_0.distcp", "__1_0.distcp", "x.pt"], [".metadata", "__0_0.distcp", "__1_0.distcp"]),
    ],
)
def test_a_folder_stands_for_the_checkpoint_it_contains(tmp_path, files, expected):
    assert names(locate_files(write_files(tmp_path, *files))) == expected


def test_an_index_stands_for_its_shards_and_in_a_folder_for_the_configuration_too(tmp_path):
    write_files(tmp_path, "one.safetensors", "below/two.safetensors", "config.json")
    path = write_index(tmp_path, "one.safetensors", "below/two.safetensors", "one.safetensors")
    shards = ["model.safetensors.index.json", "below/two.safetensors", "one.safetensors"]
    assert names(locate_files(path)) == shards
    assert names(locate_files(tmp_path)) == [*shards, "config.json"]


def test_safetensors_are_preferred_to_pickles_of_the_same_weights(tmp_path):
    write_files(tmp_path, "a.safetensors", "a.bin", "pytorch_model.bin")
    write_index(tmp_path, "a.bin", name="pytorch_model.bin.index.json")
    write_index(tmp_path, "a.safetensors")
    assert names(locate_files(tmp_path)) == ["model.safetensors.index.json", "a.safetensors"]


def test_the_digest_of_several_files_is_that_of_the_output_of_sha256sum(tmp_path):
    write_files(tmp_path, "one.safetensors", "below/two.safetensors")
    write_index(tmp_path, "one.safetensors", "below/two.safetensors")
    command = "sha256sum model.safetensors.index.json one.safetensors below/two.safetensors | sort | sha256sum"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    before = digest_checkpoint(locate_files(tmp_path), sha256_file)
    assert before == done.stdout.split()[0]
    (tmp_path / "below/two.safetensors").write_text("other")
    assert digest_checkpoint(locate_files(tmp_path), sha256_file) != before


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ([], ()),
        (["a.txt"], ()),
        (["a.pt", "b.pt"], ("2", "a.pt", "b.pt")),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            ("PEFT",),
        ),
    ],
)
def test_a_folder_without_one_clear_checkpoint_is_refused(tmp_path, files, facts, golden):
    with pytest.raises(CheckpointUnreadable) as caught:
        locate_files(write_files(tmp_path, *files), "runs", "package.yaml:7: checkpoint.path")
    golden(caught.value.message)
    golden(caught.value.why, *facts)
    assert caught.value.where == "package.yaml:7: checkpoint.path"


def test_a_folder_in_place_of_a_shard_is_refused(tmp_path, golden):
    (tmp_path / "one.safetensors").mkdir()
    with pytest.raises(CheckpointUnreadable) as caught:
        locate_files(write_index(tmp_path, "one.safetensors"))
    golden(caught.value.why, "one.safetensors")


def test_a_path_under_a_file_is_not_found(tmp_path):
    write_files(tmp_path, "best.pt")
    with pytest.raises(CheckpointNotFound):
        locate_files(tmp_path / "best.pt" / "deeper.pt")


@pytest.mark.parametrize("name", ["\0", "n" * 5000])
def test_an_impossible_path_is_refused(tmp_path, name):
    with pytest.raises(CheckpointUnreadable):
        locate_files(tmp_path / name)
