"""`package pack` and `package unpack`: a folder becomes an archive and comes back, byte by byte."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner

import packager
from packager.bundle.archive import write_archive
from packager.bundle.packing import pack_bundle, unpack_bundle
from packager.cli.main import cli
from packager.errors import IntegrityFailed, NotABundle, OutputRefused, PackagerError, render_error


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_signed_bundle_is_packed_and_unpacked_with_the_same_files_and_fingerprint(bundle, built, tmp_path):
    (bundle / "model.sig").write_text("{}")
    assert pack_bundle(bundle, tmp_path / "x.zip", force=False) == built.fingerprint
    assert unpack_bundle(tmp_path / "x.zip", tmp_path / "back", force=False) == built.fingerprint
    assert files(tmp_path / "back") == files(bundle)
    assert packager.load(tmp_path / "x.zip").fingerprint == packager.load(tmp_path / "back").fingerprint
    write_archive(tmp_path / "back", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "x.zip").read_bytes()


def test_an_archive_of_a_build_is_what_pack_writes(bundle, archived, tmp_path):
    pack_bundle(bundle, tmp_path / "x.zip", force=False)
    assert (tmp_path / "x.zip").read_bytes() == archived.read_bytes()


@pytest.mark.parametrize("change", ["changed", "extra", "empty folder", "link", "fingerprint"])
def test_a_bundle_that_is_not_intact_is_neither_packed_nor_unpacked(bundle, tmp_path, change):
    {
        "changed": lambda: (bundle / "README.md").write_text("changed"),
        "extra": lambda: (bundle / "extra").touch(),
        "empty folder": lambda: (bundle / "empty").mkdir(),
        "link": lambda: (bundle / "link").symlink_to("README.md"),
        "fingerprint": lambda: (bundle / "FINGERPRINT").unlink(),
    }[change]()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(IntegrityFailed):
        pack_bundle(bundle, tmp_path / "x.zip", force=False)
    assert sorted(os.listdir(tmp_path)) == before
    if change in ("changed", "extra", "fingerprint"):
        write_archive(bundle, tmp_path / "x.zip")
        with pytest.raises(IntegrityFailed):
            unpack_bundle(tmp_path / "x.zip", tmp_path / "back", force=False)
        assert sorted(os.listdir(tmp_path)) == sorted([*before, "x.zip"])


def test_nothing_is_overwritten_without_force(bundle, archived, tmp_path, golden):
    (tmp_path / "x.zip").write_text("mine")
    (tmp_path / "back").mkdir()
    for function, source, target in (
        (pack_bundle, bundle, tmp_path / "x.zip"),
        (unpack_bundle, archived, tmp_path / "back"),
    ):
        with pytest.raises(OutputRefused) as caught:
            function(source, target, force=False)
        golden(render_error(caught.value), "error[output-refused]", target, "--force")
    assert (tmp_path / "x.zip").read_text() == "mine"
    pack_bundle(bundle, tmp_path / "x.zip", force=True)
    unpack_bundle(archived, tmp_path / "back", force=True)
    assert files(tmp_path / "back") == files(bundle)


def test_an_archive_is_not_packed_and_a_folder_not_unpacked(bundle, archived, tmp_path):
    with pytest.raises(NotABundle, match="archive already"):
        pack_bundle(archived, tmp_path / "x.zip", force=False)
    with pytest.raises(NotABundle, match="folder already"):
        unpack_bundle(bundle, tmp_path / "x", force=False)
    with pytest.raises(OutputRefused, match=r"\.zip"):
        pack_bundle(bundle, tmp_path / "x.tar", force=False)


def test_the_commands_print_what_they_wrote_beside_the_source(bundle, built):
    runner = CliRunner()
    done = runner.invoke(cli, ["pack", str(bundle), "--json"], catch_exceptions=False)
    archive = bundle.parent / f"{bundle.name}.zip"
    assert json.loads(done.stdout) == {"archive": str(archive), "fingerprint": built.fingerprint}
    expected = files(bundle)
    shutil.rmtree(bundle)
    done = runner.invoke(cli, ["unpack", str(archive)], catch_exceptions=False)
    assert built.fingerprint in done.stdout and str(bundle) in done.stdout
    assert files(bundle) == expected
    with pytest.raises(PackagerError):
        runner.invoke(cli, ["unpack", str(archive)], catch_exceptions=False, standalone_mode=False)
