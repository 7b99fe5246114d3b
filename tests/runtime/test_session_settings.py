"""A wrong setting for onnxruntime is refused before the bundle is opened, and never looks like a bad model."""

import logging

import numpy as np
import pytest

import packager
from packager.common import hashing
from packager.errors import ArgumentWrong, ProgramNotTrusted
from packager.runtime import onnx_backend


@pytest.mark.parametrize(
    ("options", "where", "facts"),
    [
        ({"threads": "2"}, "threads", "'2'"),
        ({"threads": -3}, "threads", "-3"),
        ({"threads": 0}, "threads", "0"),
        ({"threads": True}, "threads", "True"),
        ({"threads": 1.5}, "threads", "1.5"),
        ({"providers": "CPUExecutionProvider"}, "providers", "'CPUExecutionProvider'"),
        ({"providers": []}, "providers", "[]"),
        ({"providers": ["CPUExecutionProvide"]}, "providers", "no provider named 'CPUExecutionProvide'"),
        ({"providers": [7]}, "providers", "7 is neither"),
        ({"providers": [("CPUExecutionProvider", 1)]}, "providers", "neither"),
        ({"session_options": 7}, "session_options", "7"),
        ({"session_options": {"inter_op_num_thread": 1}}, "session_options", "no 'inter_op_num_thread'"),
        ({"session_options": {"inter_op_num_threads": "x"}}, "session_options", "cannot be 'x'"),
        ({"session_options": {"session.disable_prepacking": 1}}, "session_options", "cannot be 1"),
        ({"session_options": {"session.load_model_format": "ORT"}}, "session_options", "packager.load sets"),
        ({"session_options": {"intra_op_num_threads": 1}}, "session_options", "packager.load sets"),
        ({"session_options": {"add_initializer": 1}}, "session_options", "no 'add_initializer'"),
        ({"log_level": "loud"}, "log_level", "'loud'"),
        ({"verify": "most"}, "verify", "'most'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(built, options, where, facts):
    with pytest.raises(ArgumentWrong) as caught:
        packager.load(built.bundle, **options)
    assert caught.value.where == where and facts in caught.value.why


def test_settings_reach_onnxruntime(built, capfd):
    options = {"inter_op_num_threads": 2, "session.disable_prepacking": "1", "log_verbosity_level": 0}
    bundle = packager.load(built.bundle, threads=2, session_options=options, log_level="debug")
    assert bundle._backend.threads == 2
    assert "session.disable_prepacking" in capfd.readouterr().err  # onnxruntime prints its configuration at this level
    assert bundle.providers == ("CPUExecutionProvider",)


def test_a_provider_may_have_options(built):
    providers = [("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]
    assert packager.load(built.bundle, providers=providers).providers == ("CPUExecutionProvider",)


def test_a_preferred_provider_that_is_missing_is_logged(built, caplog):
    bundle = packager.load(built.bundle, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert bundle.providers == ("CPUExecutionProvider",)
    assert caplog.messages == ["CUDAExecutionProvider is not available: using CPUExecutionProvider"]


def test_without_any_of_the_providers_the_onnx_model_is_not_used(built, caplog):
    with pytest.raises(ProgramNotTrusted) as caught:
        packager.load(built.bundle, providers=["CUDAExecutionProvider"])
    assert "CUDAExecutionProvider is not available" in caught.value.why
    with caplog.at_level(logging.WARNING, logger="packager"):
        bundle = packager.load(built.bundle, providers=["CUDAExecutionProvider"], trust_program=True)
    assert bundle.backend == "torchscript" and bundle.providers == ()
    image = np.zeros((1, 1, 8, 8), np.float32)
    expected = packager.load(built.bundle)(image=image)["logits"]
    np.testing.assert_allclose(bundle(image=image)["logits"], expected, rtol=1e-5, atol=1e-5)
    out = {"logits": np.empty((1, 10), np.float32)}
    assert bundle.run({"image": image}, out=out)["logits"] is out["logits"]
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("usable", "machine", "threads"), [(1, 8, 1), (3, 8, 3), (8, 8, 0)])
def test_default_threads_follow_the_cores_that_the_process_may_use(built, monkeypatch, usable, machine, threads):
    monkeypatch.setattr(onnx_backend, "count_usable_cores", lambda: usable)
    monkeypatch.setattr(onnx_backend.os, "cpu_count", lambda: machine)
    assert packager.load(built.bundle)._backend.threads == threads


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, 64),
        ({"sys/fs/cgroup/app.slice/cpu.max": "100000 100000", "proc/self/cgroup": "0::/app.slice/x.service\n"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 64),
        ({}, 64),
    ],
    ids=["quota", "no quota", "quota of a parent", "version 1", "version 1 without", "no cgroup"],
)
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, files, cores):
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setattr(hashing.os, "sched_getaffinity", lambda _: set(range(64)))
    assert hashing.count_usable_cores(root=tmp_path) == cores
