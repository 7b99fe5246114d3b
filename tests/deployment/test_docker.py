"""The context of a container image. The Dockerfile is linted in test_servers.py."""

import json
import re
from importlib import metadata

import pytest
from projects import reseal

from packager.deployment.exporter import export_bundle
from packager.errors import DeploymentUnsupported


def instructions(folder):
    """Return the instructions of the Dockerfile, one line each."""
    text = (folder / "Dockerfile").read_text().replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_verifies_the_bundle_and_serves_it_without_rights(built, tmp_path):
    export_bundle(built.bundle, "docker", tmp_path / "out")
    lines = instructions(tmp_path / "out")
    build = json.loads((built.bundle / "evidence/build.json").read_text())
    python = build["python"].rpartition(".")[0]
    assert lines[:2] == [f"ARG PYTHON_IMAGE=python:{python}-slim-bookworm", "FROM ${PYTHON_IMAGE}"]
    verify, user = (
        lines.index(f"RUN package verify bundle --fingerprint {built.fingerprint}"),
        lines.index("USER 10001:10001"),
    )
    assert verify < user and not [line for line in lines[user:] if line.startswith(("RUN", "COPY", "USER root"))]
    assert lines[-1] == 'CMD ["package", "serve", "bundle", "--host", "0.0.0.0", "--port", "8000"]'
    health = next(line for line in lines if line.startswith("HEALTHCHECK"))
    assert "http://127.0.0.1:8000/v2/health/ready" in health
    program = json.loads(health[health.index("CMD ") + 4 :])
    compile(program[-1], "healthcheck", "exec")
    assert f'torch-packager.fingerprint="{built.fingerprint}"' in next(
        line for line in lines if line.startswith("LABEL")
    )


def test_requirements_are_pinned_to_what_parity_was_proven_with(built, tmp_path):
    toolchain = json.loads((built.bundle / "config.json").read_text())["source"]["toolchain"]
    export_bundle(built.bundle, "docker", tmp_path / "out")
    lines = (tmp_path / "out/requirements.txt").read_text().splitlines()[1:]
    assert lines == [
        f"torch-packager[serve]=={metadata.version('torch-packager')}",
        f"onnxruntime=={toolchain['onnxruntime']}",
        f"numpy=={toolchain['numpy']}",
    ]


@pytest.mark.parametrize("version", ["", "1.0\nother-package", "--index-url=x", "1.0; x"])
def test_a_version_that_is_none_is_not_written(bundle, tmp_path, version):
    config = json.loads((bundle / "config.json").read_text())
    config["source"]["toolchain"]["numpy"] = version
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle)
    export_bundle(bundle, "docker", tmp_path / "out")
    assert (tmp_path / "out/requirements.txt").read_text().splitlines()[3:] == ["numpy"]


def test_the_context_has_what_the_dockerfile_copies_and_nothing_else(built, tmp_path):
    export_bundle(built.bundle, "docker", tmp_path / "out")
    ignore = (tmp_path / "out/.dockerignore").read_text().splitlines()
    assert ignore == ["*", "!requirements.txt", "!*.whl", "!bundle/"]
    copied = [
        source for line in instructions(tmp_path / "out") if line.startswith("COPY") for source in line.split()[1:-1]
    ]
    assert {f"!{source}" for source in copied} == set(ignore[1:])
    assert all(re.fullmatch(r"\*\.whl", source) or (tmp_path / "out" / source).exists() for source in copied)


def built_for(bundle, *providers):
    config = json.loads((bundle / "config.json").read_text())
    config["providers"] = list(providers)
    (bundle / "config.json").write_text(json.dumps(config))
    reseal(bundle)
    return bundle


@pytest.mark.parametrize("target", ["docker", "bentoml", "ray-serve"])
def test_a_bundle_for_a_gpu_is_noted(bundle, tmp_path, target):
    built_for(bundle, "CUDAExecutionProvider", "CPUExecutionProvider")
    assert export_bundle(bundle, target, tmp_path / "out").notes == (
        "requirements.txt has onnxruntime for the CPU, and the bundle was built for CUDAExecutionProvider",
    )


def test_a_bundle_that_does_not_run_on_the_cpu_is_refused(bundle, tmp_path):
    built_for(bundle, "CUDAExecutionProvider")
    with pytest.raises(DeploymentUnsupported):
        export_bundle(bundle, "docker", tmp_path / "out")
    assert not (tmp_path / "out").exists()
