"""Checkpoints behind URLs, from a real HTTP server and moto's S3 on loopback: once, whole, and without secrets."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading

import projects
import pytest
import safetensors.torch
import served
import torch
import yaml
from messages import mentions

import packager
from packager import checkpoint, errors
from packager.builder.vet import vet
from packager.checkpoint.remote import download, urls
from packager.checkpoint.remote import fetch as remote
from packager.cli.describe import inspect
from packager.common.cache import open_cache
from packager.common.progress import Note, StageCached, StageFinished, StageProgressed, StageReporter, ignore_event

LARGE = bytes(range(256)) * 12_000  # 3 MB
SECRETS = ("hunter2", "s3cr3t-signature")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(download, "RETRY_DELAYS_SECONDS", (0.0,) * 5)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def weights(seed=0, **more):
    """A state dict of projects.LINEAR."""
    torch.manual_seed(seed)
    return {"layer.weight": torch.randn(3, 4), "layer.bias": torch.randn(3), **more}


def safetensors_bytes(seed=0):
    return safetensors.torch.save(weights(seed))


def fetch(url, pin=None, listener=ignore_event):
    """The content of the one file that a URL names, as a build would find it."""
    with remote.fetch_remote(remote.RemoteCheckpoint(url, pin), StageReporter(listener)) as path:
        return path.read_bytes()


def project(folder, url, pin=None, **sections):
    """A project whose checkpoint is a URL."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(projects.LINEAR)
    pinned = {"sha256": pin} if pin else {}
    return projects.manifest(folder, checkpoint={"path": url, **pinned}, **sections)


def everything_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def refused(error):
    """The whole text of an error."""
    return errors.render_error(error.value)


# -- what a user does -------------------------------------------------------------------------


def test_a_pinned_url_is_downloaded_once_and_then_needs_no_server(tmp_path):
    content = safetensors_bytes()
    with served.serving({"m.safetensors": content}) as server:
        manifest = project(tmp_path / "project", server.url("m.safetensors"), sha256(content))
        built = packager.build(manifest, tmp_path / "out")
        assert server.sent == len(content)
        assert len(server.log) == 1
    config = json.loads((built.bundle / "config.json").read_text())
    assert config["source"]["checkpoint_sha256"] == sha256(content)
    again = packager.build(manifest, tmp_path / "out")
    elsewhere = packager.build(manifest, tmp_path / "other")
    uncached = packager.build(manifest, tmp_path / "uncached", cache="off")
    assert again.cached and elsewhere.cached and not uncached.cached
    assert built.fingerprint == again.fingerprint == elsewhere.fingerprint == uncached.fingerprint


@pytest.mark.slow
def test_the_second_build_of_a_pinned_url_imports_neither_fsspec_nor_torch(tmp_path):
    content = safetensors_bytes()
    with served.serving({"m.safetensors": content}) as server:
        manifest = project(tmp_path / "project", server.url("m.safetensors"), sha256(content))
        code = (
            "import sys, packager\n"
            "packager.build(sys.argv[1], sys.argv[2])\n"
            "print({'fsspec', 'aiohttp', 'torch', 'pydantic', 'yaml'} & set(sys.modules))"
        )
        assert projects.python(code, manifest, tmp_path / "out").returncode == 0
    done = projects.python(code, manifest, tmp_path / "out")
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr


def test_a_local_checkpoint_imports_no_fsspec(tmp_path):
    torch.save(weights(), tmp_path / "best.pt")
    code = "import sys\nfrom packager.cli.describe import inspect\ninspect(sys.argv[1])\nprint('fsspec' in sys.modules)"
    # torch itself imports it for torch.distributed.checkpoint alone, which is not read here
    assert projects.python(code, tmp_path / "best.pt").stdout == "False\n"


def test_without_a_pin_the_server_is_asked_but_does_not_send_an_unchanged_file_again(tmp_path, golden):
    content = safetensors_bytes()
    events = []
    with served.serving({"m.safetensors": content}) as server:
        manifest = project(tmp_path / "project", server.url("m.safetensors"))
        first = packager.build(manifest, tmp_path / "out", listener=events.append)
        second = packager.build(manifest, tmp_path / "out")
        assert [request.status for request in server.log] == [200, 304]
        assert second.cached
        url = server.url("m.safetensors")
        (note,) = [event.message for event in events if isinstance(event, Note)]
        golden(note, url, f"checkpoint.sha256: {sha256(content)}")
        changed = safetensors_bytes(seed=1)
        server.files["m.safetensors"] = changed
        third = packager.build(manifest, tmp_path / "out")
    assert not third.cached
    assert third.fingerprint != first.fingerprint
    config = json.loads((third.bundle / "config.json").read_text())
    assert config["source"]["checkpoint_sha256"] == sha256(changed)


@pytest.mark.parametrize("knobs", [{"conditions": False}, {"etag": "weak"}])
def test_a_file_that_a_server_sends_unnecessarily_is_not_read(knobs):
    with served.serving({"m.pt": LARGE}, **knobs) as server:
        assert fetch(server.url("m.pt")) == LARGE
        first = server.sent
        assert fetch(server.url("m.pt")) == LARGE
        assert server.sent - first < len(LARGE)


def test_a_file_without_validators_is_downloaded_each_time():
    with served.serving({"m.pt": LARGE}, etag=None) as server:
        assert fetch(server.url("m.pt")) == fetch(server.url("m.pt")) == LARGE
        assert server.sent == 2 * len(LARGE)


def test_vet_inspect_and_read_accept_a_url(tmp_path):
    content = safetensors_bytes()
    with served.serving({"m.safetensors": content}) as server:
        url = server.url("m.safetensors")
        report = vet(project(tmp_path / "project", url))
        assert (report.parameters, len(report.notes)) == (15, 1)
        assert inspect(url)["tensors"] == {"layer.bias": "F32[3]", "layer.weight": "F32[3, 4]"}
        read = checkpoint.read(url)
        assert torch.equal(read.state["layer.weight"], weights()["layer.weight"])
        pinned = checkpoint.read(url, sha256=sha256(content))
        assert torch.equal(pinned.state["layer.bias"], weights()["layer.bias"])
        assert server.sent == len(content)
        done = projects.package("inspect", url)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "checkpoint  safetensors, 2 tensors")
    assert projects.package("inspect", url).returncode == 2  # it is not pinned, and the server is gone
    assert torch.equal(checkpoint.read(url, sha256=sha256(content)).state["layer.bias"], weights()["layer.bias"])


def test_a_bundle_behind_a_url_is_inspected(archived):
    with served.serving({"digits-cnn-1.0.0.zip": archived.read_bytes()}) as server:
        assert inspect(server.url("digits-cnn-1.0.0.zip"))["config"]["name"] == "digits-cnn"


def test_a_file_url_is_read_in_place(tmp_path, cache_folder, golden):
    folder = tmp_path / "a folder"
    folder.mkdir()
    torch.save(weights(), folder / "best.pt")
    url = (folder / "best.pt").as_uri()
    assert "%20" in url
    manifest = project(tmp_path / "project", url)
    built = packager.build(manifest, tmp_path / "out")
    assert packager.build(manifest, tmp_path / "out").cached
    assert open_cache().usage()["downloads"] == (0, 0)
    torch.save(weights(seed=1), folder / "best.pt")
    assert packager.build(manifest, tmp_path / "out").fingerprint != built.fingerprint
    with pytest.raises(errors.CheckpointDigestWrong):
        checkpoint.read(url, sha256="0" * 64)
    with pytest.raises(errors.UrlUnsupported) as error:
        checkpoint.read("file://elsewhere/best.pt")
    golden(refused(error), "error[url-unsupported]", "file://elsewhere/best.pt", "file:///absolute/path")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_shows_a_bar_and_a_file_lines():
    import pty

    code = "import sys\nfrom packager.cli import console, main\nconsole._PROGRESS_INTERVAL_SECONDS = 0\nmain()"
    with served.serving({"m.safetensors": safetensors_bytes()}) as server:
        lines = projects.python(code, "inspect", server.url("m.safetensors")).stderr.splitlines()
        assert lines[0] == "download     0.0 of 0.0 MB"
        assert lines[2].startswith("download   ") and lines[2].endswith(" s")
        mine, theirs = pty.openpty()
        with served.serving({"m.safetensors": LARGE}, seconds=0.02) as slow:
            environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
            environment.pop("NO_COLOR", None)
            command = [sys.executable, "-m", "packager", "inspect", slow.url("m.safetensors")]
            running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # the other side is gone
                while piece := os.read(mine, 4096):
                    shown += piece
            running.wait()
        os.close(mine)
    assert " of 3.1 MB" in shown.decode()
    assert "━" in shown.decode()


def test_progress_is_reported_in_bytes_and_a_cached_file_as_cached():
    events = []
    with served.serving({"m.pt": LARGE}) as server:
        fetch(server.url("m.pt"), sha256(LARGE), events.append)
        moved = [event for event in events if isinstance(event, StageProgressed)]
        assert moved[0] == StageProgressed("download", 0, len(LARGE))
        assert moved[-1] == StageProgressed("download", len(LARGE), len(LARGE))
        assert isinstance(events[-1], StageFinished)
        events.clear()
        fetch(server.url("m.pt"), sha256(LARGE), events.append)
        assert events == [StageCached("download")]


# -- shards and folders -----------------------------------------------------------------------


def sharded(folder, prefix=""):
    """An index and its shards, and what they hold; the digest of all of it."""
    state = weights()
    files = {
        "model-1.safetensors": safetensors.torch.save({"layer.weight": state["layer.weight"]}),
        f"{prefix}model-2.safetensors": safetensors.torch.save({"layer.bias": state["layer.bias"]}),
    }
    places = {"layer.weight": "model-1.safetensors", "layer.bias": f"{prefix}model-2.safetensors"}
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": places}).encode()
    lines = sorted(f"{sha256(content)}  {name}\n" for name, content in files.items())
    return files, sha256("".join(lines).encode())


def test_the_shards_of_an_index_are_downloaded_with_the_same_query(tmp_path):
    files, digest = sharded(tmp_path, "more parts/")
    at = {f"run/{name.replace(' ', '%20')}": content for name, content in files.items()}
    with served.serving(at) as server:
        url = server.url("run/model.safetensors.index.json?token=s3cr3t-signature")
        read = checkpoint.read(url)
        assert torch.equal(read.state["layer.bias"], weights()["layer.bias"])
        sent = server.sent
        checkpoint.read(url)
        assert server.sent == sent
        at["run/model-1.safetensors"] = safetensors.torch.save({"layer.weight": torch.zeros(3, 4)})
        server.files.update(at)
        assert not checkpoint.read(url).state["layer.weight"].any()
        assert server.sent == sent + len(at["run/model-1.safetensors"])
    with served.serving({f"run/{name.replace(' ', '%20')}": content for name, content in files.items()}) as server:
        manifest = project(tmp_path / "project", server.url("run/model.safetensors.index.json"), digest)
        packager.build(manifest, tmp_path / "out")
        assert server.log == []  # the same checkpoint came from elsewhere


def test_shards_that_arrived_before_a_failure_are_not_sent_again(tmp_path):
    files, _ = sharded(tmp_path)
    second = files.pop("model-2.safetensors")
    with served.serving(files) as server:
        url = server.url("model.safetensors.index.json")
        with pytest.raises(errors.UrlNotFound):
            checkpoint.read(url)
        sent = server.sent
        server.files["model-2.safetensors"] = second
        checkpoint.read(url)
        assert server.sent == sent + len(second)


@pytest.mark.parametrize("name", ["../m.safetensors", "/etc/passwd", "https://elsewhere/m.safetensors", "a/../../m.pt"])
def test_an_index_that_names_a_shard_outside_its_folder_is_refused(name):
    index = json.dumps({"weight_map": {"layer.weight": name}}).encode()
    with served.serving({"run/m.index.json": index, "m.safetensors": b"x"}) as server:
        with pytest.raises(errors.CheckpointUnreadable) as error:
            checkpoint.read(server.url("run/m.index.json"))
        mentions(refused(error), repr(name))
        assert [request.path for request in server.log] == ["run/m.index.json"]


def test_a_folder_over_http_is_refused(golden):
    with served.serving({}) as server, pytest.raises(errors.UrlNotAFile) as error:
        checkpoint.read(server.url("runs/"))
    golden(refused(error), "error[url-not-a-file]", server.url("runs/"), "NAME.index.json")


# -- broken connections -----------------------------------------------------------------------


def test_a_broken_connection_is_resumed_where_it_broke():
    with served.serving({"m.pt": LARGE}, drops=[1_000_000, 500_000]) as server:
        assert fetch(server.url("m.pt")) == LARGE
        assert [request.status for request in server.log] == [200, 206, 206]
        assert [request.range for request in server.log] == [None, "bytes=1000000-", "bytes=1500000-"]
        assert server.sent == len(LARGE)  # no byte twice


def test_a_failed_download_is_resumed_by_the_next_attempt(cache_folder):
    with served.serving({"m.pt": LARGE}, drops=[2_000_000, 0, 0, 0, 0, 0, 0]) as server:
        with pytest.raises(errors.UrlUnreachable) as error:
            fetch(server.url("m.pt"))
        (part,) = [path for path in everything_in(cache_folder) if path.stat().st_size > 1_000_000]
        kept = part.stat().st_size
        mentions(refused(error), "6", "ClientPayloadError")
        mentions(refused(error), kept)
        assert open_cache().usage()["downloads"][1] >= kept
        server.log.clear()
        server.drops.clear()
        assert fetch(server.url("m.pt")) == LARGE
        assert [(request.range, request.sent) for request in server.log] == [(f"bytes={kept}-", len(LARGE) - kept)]
    assert not list((open_cache().folder / "downloads/new").glob("*"))


def test_the_download_of_a_killed_process_is_resumed_by_the_next():
    code = (
        "import sys, os, signal\n"
        "from packager.checkpoint.remote import download, fetch\n"
        "from packager.common.progress import StageProgressed, StageReporter\n"
        "download._RECORD_INTERVAL_BYTES = 1\n"
        "def hear(event):\n"
        "    if isinstance(event, StageProgressed) and event.done > 1_000_000: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with fetch.fetch_remote(fetch.RemoteCheckpoint(sys.argv[1]), StageReporter(hear)): pass"
    )
    with served.serving({"m.pt": LARGE}, seconds=0.001) as server:
        assert projects.python(code, server.url("m.pt")).returncode == -9
        assert fetch(server.url("m.pt")) == LARGE
        (rest,) = [request for request in server.log if request.status == 206]
        assert rest.sent < len(LARGE) - 900_000


def test_a_damaged_partial_download_is_not_resumed(cache_folder):
    with served.serving({"m.pt": LARGE}, drops=[2_000_000, *[0] * 6]) as server:
        with pytest.raises(errors.UrlUnreachable):
            fetch(server.url("m.pt"))
        (part,) = [path for path in everything_in(cache_folder) if path.stat().st_size > 1_000_000]
        damaged = bytearray(part.read_bytes())
        damaged[1000] ^= 1
        part.write_bytes(damaged)
        server.drops.clear()
        assert fetch(server.url("m.pt")) == LARGE
        assert server.log[-1].range is None


@pytest.mark.parametrize("knobs", [{"ranges": False}, {"etag": None}, {"etag": "weak"}])
def test_a_download_starts_over_if_the_server_lacks_ranges_or_validators(knobs):
    with served.serving({"m.pt": LARGE}, drops=[2_000_000], **knobs) as server:
        assert fetch(server.url("m.pt")) == LARGE
        assert [request.status for request in server.log] == [200, 200]


def test_a_file_that_changes_between_two_attempts_is_never_mixed():
    changed = LARGE[::-1]
    with served.serving({"m.pt": LARGE}, drops=[2_000_000]) as server:
        server.then = [lambda: server.files.update({"m.pt": changed})]
        assert fetch(server.url("m.pt")) == changed
        assert [request.status for request in server.log] == [200, 200]


def test_a_server_that_ignores_if_range_shows_by_its_etag_that_the_file_changed():
    changed = LARGE[::-1]
    with served.serving({"m.pt": LARGE}, drops=[2_000_000], conditions=False) as server:
        server.then = [lambda: server.files.update({"m.pt": changed})]
        assert fetch(server.url("m.pt")) == changed
        assert [request.status for request in server.log] == [200, 206, 200]


def test_the_download_of_a_file_that_became_shorter_starts_over():
    with served.serving({"m.pt": LARGE}, drops=[2_000_000], conditions=False) as server:
        server.then = [lambda: server.files.update({"m.pt": b"short"})]
        assert fetch(server.url("m.pt")) == b"short"
        assert [request.status for request in server.log] == [200, 416, 200]


def test_a_partial_download_of_a_different_file_is_noticed_by_the_pin():
    with served.serving({"m.pt": LARGE}, drops=[2_000_000], part_of=bytes(len(LARGE))) as server:
        with pytest.raises(errors.CheckpointDigestWrong):
            fetch(server.url("m.pt"), sha256(LARGE))
        server.part_of = None
        server.files["other.pt"] = LARGE
        assert fetch(server.url("other.pt"), sha256(LARGE)) == LARGE


def test_a_busy_server_is_retried_and_finally_given_up(golden):
    with served.serving({"m.pt": LARGE}, statuses=[503, 429]) as server:
        assert fetch(server.url("m.pt")) == LARGE
        server.statuses = [503] * 20
        server.log.clear()
        with pytest.raises(errors.UrlUnreachable) as error:
            fetch(server.url("m.pt"), "0" * 64)
        assert len(server.log) == 6
    golden(refused(error), "error[url-unreachable]", server.url("m.pt"), "6", "503")


def test_the_delays_between_attempts_grow_and_are_bounded(monkeypatch):
    paused = []
    monkeypatch.undo()
    monkeypatch.setattr(download.time, "sleep", paused.append)
    with served.serving({"m.pt": LARGE}, statuses=[503] * 20) as server, pytest.raises(errors.UrlUnreachable):
        fetch(server.url("m.pt"))
    assert paused == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_an_absent_server_is_reported_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRY_DELAYS_SECONDS", (1000.0,) * 5)
    with served.serving({}) as server:
        url = server.url("m.pt")
    with pytest.raises(errors.UrlUnreachable) as error:
        fetch(url)
    mentions(refused(error), "127.0.0.1")
    with pytest.raises(errors.UrlUnreachable) as error:
        fetch("http://nowhere.invalid/m.pt?sig=s3cr3t-signature")
    mentions(refused(error), "http://nowhere.invalid/m.pt?…")
    assert "s3cr3t" not in refused(error)


# -- servers that lie -------------------------------------------------------------------------


def test_a_server_that_announces_more_than_it_has_is_given_up():
    with served.serving({"m.pt": LARGE}, length=1000) as server:
        with pytest.raises(errors.UrlUnreachable):
            fetch(server.url("m.pt"))
        assert server.sent < 30 * len(LARGE)


def test_what_a_server_sends_beyond_the_announced_length_is_not_read(monkeypatch, golden):
    with served.serving({"m.pt": LARGE}, length=-1000) as server:
        assert fetch(server.url("m.pt")) == LARGE[:-1000]
    monkeypatch.setattr(download, "MAX_UNSIZED_BYTES", 1_000_000)
    with served.serving({"m.pt": LARGE}, length=None) as server:
        with pytest.raises(errors.DownloadRefused) as error:
            fetch(server.url("m.pt"))
        golden(refused(error), "error[download-refused]", server.url("m.pt"), "1000000")


def test_a_file_of_unknown_length_is_read_to_its_end():
    with served.serving({"m.pt": LARGE}, length=None, drops=[1_000_000]) as server:
        assert fetch(server.url("m.pt")) == LARGE


def test_a_file_that_is_sent_compressed_is_refused():
    packed = {"m.pt": b"\x1f\x8b" + bytes(100)}
    with (
        served.serving(packed, headers={"Content-Encoding": "gzip"}) as server,
        pytest.raises(errors.DownloadRefused) as error,
    ):
        fetch(server.url("m.pt"))
    mentions(refused(error), "(gzip)")


def test_an_error_page_with_status_200_is_not_a_checkpoint(tmp_path):
    page = {"m.pt": b"<html>Sorry</html>"}
    with (
        served.serving(page, headers={"Content-Type": "text/html"}) as server,
        pytest.raises(errors.CheckpointUnreadable) as error,
    ):
        packager.build(project(tmp_path / "project", server.url("m.pt?sig=1")), tmp_path / "out")
    mentions(refused(error), "error[checkpoint-unreadable]", server.url("m.pt"))
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_an_empty_file_is_not_a_checkpoint(golden):
    with served.serving({"m.pt": b""}) as server, pytest.raises(errors.CheckpointUnreadable) as error:
        checkpoint.read(server.url("m.pt"))
    golden(refused(error), server.url("m.pt"))


# -- what is refused --------------------------------------------------------------------------


def test_a_digest_other_than_the_pinned_one_is_refused_and_not_cached_as_the_pinned_one(tmp_path, golden):
    content, other = safetensors_bytes(), safetensors_bytes(seed=1)
    with served.serving({"m.safetensors": other}) as server:
        manifest = project(tmp_path / "project", server.url("m.safetensors"), sha256(content))
        for _ in range(2):
            with pytest.raises(errors.CheckpointDigestWrong) as error:
                packager.build(manifest, tmp_path / "out")
            url = server.url("m.safetensors")
            golden(
                refused(error),
                "error[checkpoint-digest]",
                url,
                f"{manifest}:8: checkpoint.sha256",
                sha256(content),
                sha256(other),
            )
            assert not open_cache().download_folder(sha256(content)).exists()
        assert server.sent == len(other)  # it is known by its own digest
        server.files["m.safetensors"] = content
        packager.build(manifest, tmp_path / "out")


def test_a_download_that_was_damaged_in_the_cache_is_fetched_again():
    with served.serving({"m.pt": LARGE}) as server:
        fetch(server.url("m.pt"), sha256(LARGE))
        (kept,) = everything_in(open_cache().download_folder(sha256(LARGE)))
        kept.write_bytes(b"damaged")
        assert fetch(server.url("m.pt"), sha256(LARGE)) == LARGE
        assert server.sent == 2 * len(LARGE)
        (kept,) = everything_in(open_cache().download_folder(sha256(LARGE)))
        kept.write_bytes(b"damaged")
        assert fetch(server.url("m.pt")) == LARGE


def test_a_missing_file_and_a_forbidden_one_are_distinguished(tmp_path, golden):
    with served.serving({"m.pt": LARGE}, statuses=[404, 403, 500, 500, 500, 500, 500, 500, 418]) as server:
        manifest = project(tmp_path / "project", server.url("m.pt"))
        with pytest.raises(errors.UrlNotFound) as error:
            packager.build(manifest, tmp_path / "out")
        golden(refused(error), "error[url-not-found]", server.url("m.pt"), f"{manifest}:7: checkpoint.path", "404")
        with pytest.raises(errors.UrlRefused) as error:
            fetch(server.url("m.pt"))
        golden(refused(error), "error[url-refused]", server.url("m.pt"), "403", "~/.netrc")
        for status in (500, 418):
            with pytest.raises(errors.UrlUnreachable) as error:
                fetch(server.url("m.pt"))
            mentions(refused(error), status)


def test_an_unknown_protocol_is_refused(golden):
    with pytest.raises(errors.UrlUnsupported) as error:
        checkpoint.read("nonsense://user:hunter2@host/m.pt")
    golden(refused(error), "error[url-unsupported]", "nonsense://host/m.pt", "s3")


@pytest.mark.parametrize(
    ("module", "url", "command"),
    [
        ("fsspec", "https://h/m.pt", "pip install 'torch-packager[remote]'"),
        ("aiohttp", "https://h/m.pt", "pip install 'torch-packager[remote]'"),
        ("s3fs", "s3://b/m.pt", "pip install s3fs"),
        ("gcsfs", "gs://b/m.pt", "pip install gcsfs"),
    ],
)
def test_a_missing_module_is_reported_with_the_package_to_install(module, url, command):
    code = f"import sys\nsys.modules[{module!r}] = None\nfrom packager.cli import main\nmain()"
    done = projects.python(code, "inspect", url)
    assert done.returncode == 2
    mentions(done.stderr, "error[extra-missing]", url, module, command)


def test_a_full_disk_is_reported(monkeypatch, cache_folder, golden):
    class Full:
        free = 1000

    with served.serving({"m.pt": LARGE}) as server:
        monkeypatch.setattr(download.shutil, "disk_usage", lambda path: Full)
        with pytest.raises(errors.DownloadRefused) as error:
            fetch(server.url("m.pt"))
        golden(refused(error), "error[download-refused]", server.url("m.pt"), open_cache().folder, "PACKAGER_CACHE")


def test_a_disk_that_fills_up_on_the_way_is_reported(tmp_path):
    # a file system's limit on the size of a file is met where its end would be
    code = (
        "import resource, signal, sys\nfrom packager.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\nmain()"
    )
    with served.serving({"m.pt": LARGE}) as server:
        done = projects.python(code, "inspect", server.url("m.pt"))
        assert done.returncode == 2
        mentions(done.stderr, "error[download-refused]", server.url("m.pt"), "File too large")
        assert fetch(server.url("m.pt")) == LARGE


def test_a_redirect_is_followed():
    with served.serving({"m.pt": LARGE}) as server:
        server.redirects["latest"] = server.url("m.pt?sig=s3cr3t-signature")
        assert fetch(server.url("latest")) == LARGE
        server.redirects["round"] = "/round"
        with pytest.raises(errors.PackagerError) as error:
            fetch(server.url("round"))
    assert error.value.exit_status == 2


# -- secrets ----------------------------------------------------------------------------------


SIGNED = "m.safetensors?X-Signature=s3cr3t-signature"
BASIC = "Basic dXNlcjpodW50ZXIy"  # user:hunter2


def test_the_secrets_of_a_url_are_in_no_bundle_and_no_cache(tmp_path, cache_folder):
    content, events = safetensors_bytes(), []
    with served.serving({"m.safetensors": content}, password=BASIC) as server:
        manifest = project(tmp_path / "project", server.url(SIGNED, user="user:hunter2@"))
        packager.build(manifest, tmp_path / "out", archive=True, lock="write", listener=events.append)
        server.files.clear()
        with pytest.raises(errors.UrlNotFound) as error:
            packager.build(manifest, tmp_path / "out", listener=events.append)
    text = f"{events} {refused(error)} {error.value.as_json()} {error.value}"
    assert f"http://{server.address}/m.safetensors?…" in text
    stored = [*everything_in(tmp_path / "out"), *everything_in(cache_folder), manifest.with_suffix(".lock")]
    for secret in SECRETS:
        assert secret not in text
        assert [path for path in stored if secret.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_the_secrets_of_a_url_are_in_no_file_and_no_output(tmp_path, cache_folder):
    content = safetensors_bytes()
    with served.serving({"m.safetensors": content}, password=BASIC) as server:
        url = server.url(SIGNED, user="user:hunter2@")
        manifest = project(tmp_path / "project", url)
        outputs = [
            projects.package("build", manifest, "-o", tmp_path / "out", "--explain", "--lock"),
            projects.package("vet", manifest),
            projects.package("inspect", url),
        ]
        assert [output.returncode for output in outputs] == [0, 0, 0]
        server.files["m.safetensors"] = b"no checkpoint"
        outputs += [projects.package("build", manifest), projects.package("inspect", url)]
        server.files.clear()
        outputs += [projects.package("build", manifest, "--json"), projects.package("inspect", url, "--json")]
        server.password = "another"
        outputs += [projects.package("build", manifest)]
        server.password, server.statuses = None, [418]
        outputs += [projects.package("build", manifest)]
        wrong = tmp_path / "project" / "wrong.yaml"
        document = yaml.safe_load(manifest.read_text())
        wrong.write_text(yaml.safe_dump({**document, "checkpoint": url}))
        outputs += [projects.package("vet", wrong)]
        wrong.write_text(yaml.safe_dump({**document, "checkpoint": {"path": url, "sha256": "0" * 64}}))
        server.files["m.safetensors"] = content
        outputs += [projects.package("vet", wrong)]
        environment = {**os.environ, "PACKAGER_DEBUG_HASH": "1"}
        outputs += [projects.package("build", manifest, "-o", tmp_path / "out2", env=environment)]
        assert outputs[-1].returncode == 0
    outputs += [projects.package("build", manifest)]
    assert [output.returncode for output in outputs] == [0, 0, 0, *[2] * 8, 0, 2]
    output_text = "".join(output.stdout + output.stderr for output in outputs)
    stored = [*everything_in(tmp_path / "out"), *everything_in(cache_folder), manifest.with_suffix(".lock")]
    for secret in SECRETS:
        assert secret not in output_text
        for path in stored:
            assert secret.encode() not in path.read_bytes(), path
    assert f"http://{server.address}/m.safetensors?…" in output_text


def test_a_signature_is_sent_unchanged():
    with served.serving({"m.pt": LARGE}) as server:
        asked = []
        server.then = [lambda: None]
        handler = served._Handler.do_GET
        served._Handler.do_GET = lambda self: (asked.append(self.path), handler(self))[1]
        try:
            fetch(server.url("m.pt?a=%2Fx%2B+y&b=%7e"))
        finally:
            served._Handler.do_GET = handler
    assert asked == ["/m.pt?a=%2Fx%2B+y&b=%7e"]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a/m.pt", "https://host/a/m.pt"),
        ("https://user:hunter2@host:8080/m.pt", "https://host:8080/m.pt"),
        ("https://user:hun@ter2@host/m.pt", "https://host/m.pt"),
        ("https://user:hun/ter2@host/m.pt", "https://host/m.pt"),
        ("https://user:hun?ter2@host/m.pt", "https://host/m.pt"),
        ("https://hunter2@host/m.pt#hunter2", "https://host/m.pt?…"),
        ("https://host:8000/a/b@c.pt?sig=hunter2", "https://host:8000/a/b@c.pt?…"),
        ("http://[::1]:8000/m.pt?sig=hunter2", "http://[::1]:8000/m.pt?…"),
        ("zip://m.pt::https://user:hunter2@host/a.zip?sig=hunter2", "zip://m.pt::https://host/a.zip?…"),
        ("s3://bucket/a key@1/m.pt", "s3://bucket/a key@1/m.pt"),
        ("runs/best.pt", "runs/best.pt"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert urls.redact_url(url) == shown
    if " " not in url:
        assert urls.redact_text(f"it said: '{url}', twice: {url}") == f"it said: '{shown}', twice: {shown}"


@pytest.mark.parametrize("path", ["runs/best.pt", "/abs/best.pt", "C:/runs/best.pt", "C://best.pt", "a::b.pt", "x:y"])
def test_a_path_is_not_a_url(path):
    assert not urls.is_url(path)


# -- the cache --------------------------------------------------------------------------------


def test_the_cache_counts_downloads_and_clears_them():
    with served.serving({"m.pt": LARGE, "n.pt": LARGE[::-1]}, drops=[2_000_000, *[0] * 6]) as server:
        with pytest.raises(errors.UrlUnreachable):
            fetch(server.url("m.pt"))
        server.drops.clear()
        fetch(server.url("n.pt"))
        size = open_cache().usage()["downloads"][1]
        assert size > len(LARGE) + 1_000_000
        assert open_cache().clear() > size
        assert open_cache().usage()["downloads"] == (0, 0)
        assert fetch(server.url("m.pt"), sha256(LARGE)) == LARGE


def test_a_download_that_was_long_unused_is_deleted_as_a_whole(tmp_path):
    files, digest = sharded(tmp_path)
    with served.serving(files) as server:
        checkpoint.read(server.url("model.safetensors.index.json"))
    cache = open_cache()
    folder = cache.download_folder(digest)
    now = folder.stat().st_mtime
    cache.trim_now(now, max_bytes=0, max_age_seconds=0)  # build outputs alone
    cache.trim_now(now, max_bytes=1 << 30, max_age_seconds=10, kinds=("downloads",))
    assert len(everything_in(folder)) == 3
    os.utime(folder, (now - 31 * 24 * 3600,) * 2)
    cache.trim()
    assert not folder.exists()


def test_without_a_cache_a_download_is_not_kept(tmp_path, monkeypatch, temporary):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("PACKAGER_CACHE", str(blocked))
    content = safetensors_bytes()
    events = []
    with served.serving({"m.safetensors": content}) as server:
        manifest = project(tmp_path / "project", server.url("m.safetensors"), sha256(content))
        for _ in range(2):
            vet(manifest)
        assert server.sent == 2 * len(content)
        read = checkpoint.read(server.url("m.safetensors"))
        assert torch.equal(read.state["layer.weight"], weights()["layer.weight"])
        fetch(server.url("m.safetensors"), listener=events.append)
    assert any(isinstance(event, Note) and str(blocked) in event.message for event in events)


def test_the_same_content_under_a_different_name_and_url_is_not_downloaded_again():
    content = safetensors_bytes()
    with served.serving({"blob": content, "m.safetensors": content}) as server:
        with pytest.raises(errors.CheckpointUnreadable):
            checkpoint.read(server.url("blob"), sha256=sha256(content))  # its name does not say what it is
        read = checkpoint.read(server.url("m.safetensors"), sha256=sha256(content))
        assert torch.equal(read.state["layer.weight"], weights()["layer.weight"])
        assert server.sent == len(content)


def test_concurrent_threads_download_once(cache_folder):
    contents, events = [], []
    with served.serving({"m.pt": LARGE}, seconds=0.005) as server:

        def work():
            contents.append(fetch(server.url("m.pt"), listener=events.append))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert contents == [LARGE] * 4
        assert server.sent == len(LARGE)
    assert any(isinstance(event, Note) for event in events)


def test_concurrent_processes_download_once(tmp_path):
    code = (
        "import sys\nfrom packager.checkpoint.remote.fetch import RemoteCheckpoint, fetch_remote\n"
        "from packager.common.progress import StageReporter, ignore_event\n"
        "with fetch_remote(RemoteCheckpoint(sys.argv[1]), StageReporter(ignore_event)) as path:\n"
        "    print(path.stat().st_size)"
    )
    with served.serving({"m.pt": LARGE}, seconds=0.02) as server:
        command = [sys.executable, "-c", code, server.url("m.pt")]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
        assert [int(process.communicate()[0]) for process in running] == [len(LARGE)] * 3
        assert server.sent == len(LARGE)


# -- S3 ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket():
    """moto's S3 server, with a bucket: put(name, content) → its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    system = s3fs.S3FileSystem()
    system.mkdir("checkpoints")

    def put(name, content):
        system.pipe(f"checkpoints/{name}", content)
        return f"s3://checkpoints/{name}"

    yield put
    patch.undo()
    server.stop()


def test_a_file_on_s3_is_built_from_and_downloaded_again_after_a_change(bucket, tmp_path):
    manifest = project(tmp_path / "project", bucket("runs/best.safetensors", safetensors_bytes()))
    first = packager.build(manifest, tmp_path / "out")
    events = []
    second = packager.build(manifest, tmp_path / "out", listener=events.append)
    assert second.cached
    assert not any(isinstance(event, StageProgressed) for event in events)
    bucket("runs/best.safetensors", safetensors_bytes(seed=1))
    assert packager.build(manifest, tmp_path / "out").fingerprint != first.fingerprint


def test_a_large_file_on_s3_is_resumed_where_it_broke(bucket, monkeypatch):
    content = LARGE * 4
    url = bucket("large.pt", content)
    events = []

    class Enough(Exception):
        pass

    def hear(event):
        events.append(event)
        if isinstance(event, StageProgressed) and event.done > 5_000_000:
            raise Enough

    with pytest.raises(Enough):
        fetch(url, listener=hear)
    received = max(event.done for event in events if isinstance(event, StageProgressed))
    events.clear()
    assert fetch(url, listener=events.append) == content
    assert next(event for event in events if isinstance(event, StageProgressed)) == StageProgressed(
        "download", received, len(content)
    )


def test_a_file_on_s3_that_changes_on_the_way_is_never_mixed(bucket):
    content, changed = LARGE * 4, LARGE[::-1] * 4
    url = bucket("moving.pt", content)
    done = []

    def hear(event):
        if isinstance(event, StageProgressed) and event.done > 1 and not done:
            done.append(bucket("moving.pt", changed))

    assert fetch(url, listener=hear) == changed


def test_shards_and_folders_on_s3_are_read(bucket, tmp_path):
    files, digest = sharded(tmp_path)
    for name, content in files.items():
        bucket(f"sharded/{name}", content)
    bucket("sharded/config.json", b"{}")
    bucket("sharded/tf_model.h5", LARGE)
    by_index = checkpoint.read("s3://checkpoints/sharded/model.safetensors.index.json", sha256=digest)
    for folder in ("s3://checkpoints/sharded", "s3://checkpoints/sharded/"):
        by_folder = checkpoint.read(folder)
        assert torch.equal(by_folder.state["layer.bias"], by_index.state["layer.bias"])
        with remote.fetch_remote(remote.RemoteCheckpoint(folder), StageReporter(ignore_event)) as path:
            assert sorted(file.name for file in path.iterdir()) == sorted([*files, "config.json"])


def test_a_folder_of_torch_distributed_checkpoint_on_s3_is_read(bucket, tmp_path):
    import torch.distributed.checkpoint as dcp

    dcp.save(weights(), checkpoint_id=tmp_path / "dcp")
    for path in everything_in(tmp_path / "dcp"):
        bucket(f"dcp/{path.name}", path.read_bytes())
    read = checkpoint.read("s3://checkpoints/dcp")
    assert torch.equal(read.state["layer.weight"], weights()["layer.weight"])


def test_a_run_on_s3_is_refused_with_the_file_to_name(bucket, golden):
    bucket("run/run.json", b"{}")
    bucket("run/step-00000001/model.safetensors", safetensors_bytes())
    with pytest.raises(errors.UrlNotAFile) as error:
        checkpoint.read("s3://checkpoints/run")
    golden(
        refused(error),
        "error[url-not-a-file]",
        "s3://checkpoints/run",
        "CheckpointManager",
        "s3://checkpoints/run/step-00000001/model.safetensors",
    )
    checkpoint.read("s3://checkpoints/run/step-00000001/model.safetensors")


def test_a_missing_or_forbidden_file_on_s3_is_reported(bucket, monkeypatch):
    for url in ("s3://checkpoints/nothing.pt", "s3://no-such-bucket/m.pt"):
        with pytest.raises(errors.UrlNotFound) as error:
            checkpoint.read(url)
        mentions(refused(error), "error[url-not-found]", url)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nowhere", "HOME": "/nowhere"}
    environment |= {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}
    done = projects.package("inspect", "s3://checkpoints/dcp", env=environment)
    assert (done.returncode, "error[url-refused]" in done.stderr) == (2, True), done.stderr


def test_an_absent_s3_server_is_reported(tmp_path):
    environment = {**os.environ, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x"}
    environment |= {"AWS_SECRET_ACCESS_KEY": "y", "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "us-east-1"}
    done = projects.package("inspect", "s3://checkpoints/m.pt", env=environment)
    assert (done.returncode, "error[url-unreachable]" in done.stderr) == (2, True), done.stderr


# -- any other file system of fsspec ----------------------------------------------------------


def test_a_file_of_any_file_system_that_changes_on_the_way_is_never_mixed():
    import fsspec

    memory, content, changed = fsspec.filesystem("memory"), LARGE * 4, LARGE[::-1] * 4
    memory.pipe("/moving.pt", content)
    done = []

    def hear(event):
        if isinstance(event, StageProgressed) and event.done > 1 and not done:
            done.append(memory.pipe("/moving.pt", changed))

    assert fetch("memory://moving.pt", listener=hear) == changed
    assert done


def test_whatever_fsspec_opens_is_read_even_a_chain(tmp_path):
    import zipfile

    import fsspec

    content = safetensors_bytes()
    fsspec.filesystem("memory").pipe("/models/m.safetensors", content)
    assert fetch("memory://models/m.safetensors") == content
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("inner/m.safetensors", content)
    with served.serving({"all.zip": (tmp_path / "all.zip").read_bytes()}) as server:
        read = checkpoint.read(f"zip://inner/m.safetensors::{server.url('all.zip')}")
    assert torch.equal(read.state["layer.weight"], weights()["layer.weight"])


# -- what others may do -----------------------------------------------------------------------


def test_a_download_is_for_the_user_alone():
    before = os.umask(0)
    try:
        with served.serving({"m.bin": LARGE}) as server:
            assert fetch(server.url("m.bin")) == LARGE
    finally:
        os.umask(before)
    folder = open_cache().folder
    assert [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077] == []
    assert any(path.stat().st_size == len(LARGE) for path in everything_in(folder))


def test_a_finished_file_of_an_earlier_attempt_is_hashed_before_it_is_used():
    """Its record says which digest it has, and a pin was compared with that."""
    forged = bytes(len(LARGE))
    with served.serving({"m.bin": LARGE}) as server:
        cache = open_cache()
        folder = cache.incoming_folder(sha256(LARGE))
        cache.make_folder(folder / "files")
        (folder / "files/m.bin").write_bytes(forged)
        version = {"size": len(LARGE), "marks": {}}
        record = {"bytes": len(LARGE), "sha256": sha256(LARGE), "version": version}
        (folder / f"{sha256(b'm.bin')}.done").write_text(json.dumps(record))
        done = folder / f"{sha256(b'm.bin')}.done", folder / "files/m.bin"
        assert remote._read_finished(*done) is None
        (folder / "files/m.bin").write_bytes(LARGE)
        assert remote._read_finished(*done) is not None
        (folder / "files/m.bin").write_bytes(forged)
        assert fetch(server.url("m.bin"), sha256(LARGE)) == LARGE
