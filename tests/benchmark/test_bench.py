"""`package bench` on a real bundle: what is measured, what is not and why. No test depends on a time."""

import json
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from messages import mentions
from projects import ANOTHER, IMAGE, environment_without_torch, package, project, update_digests

from packager.benchmark.measure import MIN_ROUNDS
from packager.benchmark.run import bench
from packager.errors import BackendUnavailable, DataDoesNotFit, FingerprintWrong, IntegrityFailed

BACKENDS = ("onnx", "torchscript", "eager")


@pytest.fixture(scope="session")
def measured(built, digits, tmp_path_factory):
    """Return the JSON, stderr and picture of a run with every backend."""
    picture = tmp_path_factory.mktemp("bench") / "bench.svg"
    options = ["--batch", "1,4", "--threads", "1,2", "--seconds", "1", "--plot", picture, "--json"]
    done = package("bench", built.bundle, "--manifest", digits, "--fingerprint", built.fingerprint, *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr, picture.read_text(encoding="utf-8")


def test_every_backend_is_measured_on_every_case_with_every_number_of_threads(measured, built):
    record, stderr, _ = measured
    assert stderr == ""
    keys = [(row["batch"], row["threads"], row["backend"]) for row in record["measurements"]]
    assert keys == [(batch, threads, name) for batch in (1, 4) for threads in (1, 2) for name in BACKENDS]
    assert (record["not_measured"], record["skipped"]) == ({}, {})
    assert record["bundle"] == {"name": "digits-cnn", "version": "1.0.0", "fingerprint": built.fingerprint}
    assert record["rounds"] >= 1


def test_the_figures_are_those_of_the_calls(measured):
    for row in measured[0]["measurements"]:
        assert row["calls"] >= measured[0]["rounds"]
        times = [time for time in (row["p50_ms"], row["p90_ms"], row["p99_ms"]) if time is not None]
        assert times == sorted(times) and times[0] > 0
        assert row["rows_per_second"] > 0
        assert (row["p90_ms"] is None) == (row["calls"] < 10) and (row["p99_ms"] is None) == (row["calls"] < 100)


def test_onnx_is_compared_with_each_of_the_others(measured):
    record = measured[0]
    keys = [(row["batch"], row["threads"], row["against"]) for row in record["comparisons"]]
    assert keys == [(batch, threads, name) for batch in (1, 4) for threads in (1, 2) for name in BACKENDS[1:]]
    for row in record["comparisons"]:
        assert (row["backend"], row["rounds"]) == ("onnx", record["rounds"])
        if record["rounds"] < MIN_ROUNDS:
            assert (row["low"], row["high"], row["verdict"]) == (None, None, "undecided")
        else:
            assert row["low"] <= row["ratio"] <= row["high"]


def test_the_machine_the_versions_and_the_source_of_the_inputs_are_in_the_record(measured):
    record = measured[0]
    assert record["machine"]["cores"] >= 1 and record["machine"]["memory_bytes"] > 0
    assert set(record["machine"]["versions"]) == {"packager", "onnxruntime", "numpy", "torch"}
    assert record["inputs"] and all(source.startswith("case ") for source in record["inputs"])
    assert list(record["backends"]) == list(BACKENDS)
    for loaded in record["backends"].values():
        assert loaded["load_seconds"] > 0 and loaded["resident_bytes"] > 1 << 20


def test_the_picture_has_a_line_for_each_backend_and_number_of_threads_in_both_panels(measured):
    root = ElementTree.fromstring(measured[2])
    namespace = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{namespace}text")]
    for name in BACKENDS:
        assert f"{name}, 1 thread" in texts and f"{name}, 2 threads" in texts
    assert texts.count("batch=1") == texts.count("batch=4") == 2
    assert len(list(root.iter(f"{namespace}polyline"))) == 2 * 2 * len(BACKENDS)
    assert len(list(root.iter(f"{namespace}circle"))) == 2 * len(measured[0]["measurements"])
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    places = [(float(text.attrib["x"]), float(text.attrib["y"])) for text in root.iter(f"{namespace}text")]
    assert len(set(places)) == len(places) and all(0 < x < width and 0 < y < height for x, y in places)
    for element in root.iter(f"{namespace}circle"):
        assert 0 < float(element.attrib["cx"]) < width and 0 < float(element.attrib["cy"]) < height


def test_a_program_of_a_bundle_that_nobody_vouches_for_is_not_run(built):
    report = bench(built.bundle, batches=(2,), threads=(1,), seconds=0.05)
    assert [row.backend for row in report.rows] == ["onnx"]
    assert report.rows[0].compared is None
    mentions(report.not_measured["torchscript"], "--fingerprint", "--trust-program")
    assert report.not_measured["eager"] == "give --manifest"


def test_the_command_prints_a_table_and_says_what_was_not_measured(built, archived, tmp_path):
    np.savez(tmp_path / "x.npz", image=np.zeros((3, 1, 8, 8), np.float32))
    done = package("bench", archived, "--input", tmp_path / "x.npz", "--threads", "1", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["inputs", "values", "of", str(tmp_path / "x.npz")] in lines
    assert [line[:3] for line in lines if line[:2] == ["onnx", "1"]] == [
        ["onnx", "1", f"batch={batch}"]
        for batch in (1, 8, 16)  # the bundle takes 16 at most
    ]
    mentions(done.stdout, "not measured: torchscript", "not measured: eager", built.fingerprint)


def test_a_manifest_of_different_weights_is_measured_and_noted(built, digits, tmp_path):
    folder = shutil.copytree(digits.parent, tmp_path / "digits")
    text = digits.read_text().replace("best.pt", "other.pt")
    (folder / "package.yaml").write_text(text)
    state = torch.load(folder / "best.pt", weights_only=True)
    torch.save({name: tensor * 2 for name, tensor in state.items()}, folder / "other.pt")
    report = bench(built.bundle, manifest=folder / "package.yaml", batches=(1,), threads=(1,), seconds=0.05)
    assert [row.backend for row in report.rows] == ["onnx", "eager"]
    assert any("is not the one that the bundle was built from" in note for note in report.notes)


DYING = """
import os
import signal

from torch import nn


class Net(nn.Module):
    def forward(self, image):
        print("forward")
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_module_that_ends_its_process_costs_its_own_figures_and_what_it_prints_stays_off_stdout(built, tmp_path):
    manifest = project(tmp_path / "dying", DYING, inputs=IMAGE)
    options = ["--batch", "1", "--threads", "1", "--seconds", "0.05", "--json"]
    done = package("bench", built.bundle, "--manifest", manifest, *options)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [row["backend"] for row in record["measurements"]] == ["onnx"]
    assert record["skipped"] == {"eager, 1 thread, batch=1": "the process ended with SIGKILL"}


def test_a_manifest_that_is_wrong_is_an_error_and_not_a_missing_figure(built, tmp_path):
    done = package("bench", built.bundle, "--manifest", tmp_path / "no.yaml", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "manifest-not-found"


def test_a_program_that_torch_cannot_read_is_not_measured_and_the_others_are(bundle):
    (bundle / "model.ts").write_bytes(b"no program")
    fingerprint = update_digests(bundle)
    report = bench(bundle, fingerprint=fingerprint, batches=(1,), threads=(1,), seconds=0.05)
    assert [row.backend for row in report.rows] == ["onnx"]
    mentions(report.not_measured["torchscript"], "RuntimeError")


def test_without_torch_onnx_is_measured_and_a_manifest_is_an_error(built, digits, tmp_path):
    env = environment_without_torch(tmp_path / "without")
    options = ["--trust-program", "--batch", "1", "--threads", "1", "--seconds", "0.05", "--json"]
    done = package("bench", built.bundle, *options, env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["not_measured"]["torchscript"] == "ModuleNotFoundError: No module named 'torch'"
    done = package("bench", built.bundle, *options, "--manifest", digits, env=env)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "extra-missing")


def test_a_bundle_that_is_damaged_or_not_the_right_one_is_not_measured(bundle):
    with pytest.raises(FingerprintWrong):
        bench(bundle, fingerprint=ANOTHER)
    (bundle / "extra").touch()
    with pytest.raises(IntegrityFailed):
        bench(bundle)


def test_inputs_that_do_not_fit_are_an_error(built, tmp_path):
    np.savez(tmp_path / "x.npz", image=np.zeros((3, 1, 8, 8), np.float64))
    with pytest.raises(DataDoesNotFit, match="float64"):
        bench(built.bundle, inputs=tmp_path / "x.npz", threads=(1,), seconds=0.05)
    np.savez(tmp_path / "x.npz", image=np.zeros((0, 1, 8, 8), np.float32))
    with pytest.raises(DataDoesNotFit, match="image is empty"):
        bench(built.bundle, inputs=tmp_path / "x.npz")
    with pytest.raises(DataDoesNotFit, match="at most 16"):
        bench(built.bundle, batches=(32,))


def test_a_bundle_of_which_nothing_can_be_measured_is_an_error(bundle):
    (bundle / "model.onnx").write_bytes(b"no model")
    update_digests(bundle)
    with pytest.raises(BackendUnavailable) as raised:
        bench(bundle, batches=(1,), threads=(1,))
    mentions(raised.value.why, "onnx: ", "torchscript: TorchScript is a program")


def test_options_that_make_no_sense_are_usage_errors(built, tmp_path):
    for options in (["--batch", "0"], ["--batch", "1,x"], ["--dim", "batch"], ["--dim", "=3"], ["--seconds", "0"]):
        done = package("bench", built.bundle, *options, "--json")
        assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "usage"), options
    for path in (tmp_path / "no" / "bench.svg", tmp_path):
        done = package("bench", built.bundle, "--plot", path, "--json")
        assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "output-refused")
