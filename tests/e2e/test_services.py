"""The services of docs/serving.md run as the page shows them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import servers

import packager

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def code_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def block_with(language, text):
    (block,) = [block for block in code_blocks(language) if text in block]
    return block


@pytest.fixture
def folder(built, tmp_path):
    """Return a folder with the page's FastAPI service and the bundle, as its dist/digits-cnn-1.0.0."""
    shutil.copytree(built.bundle, tmp_path / "dist" / "digits-cnn-1.0.0")
    source = block_with("python", "FastAPI, HTTPException").replace("h1:…", built.fingerprint)
    (tmp_path / "service.py").write_text(source)
    return tmp_path


def test_gunicorn_forks_workers_that_predict(built, folder):
    command = block_with("sh", "gunicorn service:app").split()
    port = servers.free_port()
    command = [servers.BIN / command[0], *command[1:], "--bind", f"{servers.HOST}:{port}"]
    url = f"http://{servers.HOST}:{port}"
    images = np.random.default_rng(0).random((2, 1, 8, 8), np.float32)
    expected = packager.load(built.bundle)(image=images)["logits"]
    with servers.server(command, f"{url}/openapi.json", folder / "log", cwd=folder):
        for _ in range(40):  # whichever worker answers
            status, answer = servers.post(f"{url}/predict", {"image": images.tolist()})
            assert status == 200
            np.testing.assert_allclose(answer["logits"], expected, rtol=1e-5, atol=1e-5)
        status, answer = servers.post(f"{url}/predict", {"image": images[:, :, :7].tolist()})
        assert status == 422 and "axis 2 must be 8" in answer["detail"]


def test_a_pool_of_spawned_processes_predicts(folder):
    (folder / "pool.py").write_text(block_with("python", "import multiprocessing"))
    process = subprocess.run([sys.executable, "pool.py"], cwd=folder, capture_output=True, text=True, timeout=200)
    assert process.returncode == 0, process.stderr
    image = np.zeros((1, 1, 8, 8), np.float32)
    digit = packager.load(folder / "dist" / "digits-cnn-1.0.0")(image=image)["logits"].argmax()
    assert np.array_equal(np.fromstring(process.stdout.strip("[]\n"), sep=" "), np.full(16 * 8, digit))
