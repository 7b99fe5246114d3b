"""A service with the oldest supported onnxruntime loads bundles of today, or falls back and says why."""

import os
import sys
from pathlib import Path

import onnx
import pytest
from projects import python, reseal

pytestmark = pytest.mark.slow

OLD = Path(sys.prefix) / "old-onnxruntime"

PREDICT = """
import logging, sys
import numpy as np
import onnxruntime
import packager

logging.basicConfig(format="%(message)s")
print(onnxruntime.__version__)
bundle = packager.load(sys.argv[1], trust_program=sys.argv[2] == "trust")
print(bundle.backend)
np.save(sys.argv[3], bundle(image=np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8))["logits"])
"""


def predict(bundle, trust, target):
    path = os.pathsep.join([str(OLD), *filter(None, [os.environ.get("PYTHONPATH")])])
    return python(PREDICT, bundle, "trust" if trust else "", target, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture
def expected(built):
    import numpy as np

    import packager

    return packager.load(built.bundle)(image=np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8))["logits"]


@pytest.fixture
def newer(bundle):
    """Return the bundle with the newest opset that today's onnxruntime takes, and the old one does not."""
    model = onnx.load(bundle / "model.onnx")
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = 24
    onnx.save(model, bundle / "model.onnx")
    config = bundle / "config.json"
    config.write_text(
        config.read_text().replace('"ai.onnx": 20', '"ai.onnx": 24').replace('"opset": 20', '"opset": 24')
    )
    reseal(bundle)
    return bundle


def check(target, expected):
    import numpy as np

    np.testing.assert_allclose(np.load(target), expected, rtol=1e-4, atol=1e-5)


def test_a_bundle_of_today_runs_on_it(built, expected, tmp_path):
    process = predict(built.bundle, False, tmp_path / "out.npy")
    assert process.stdout.splitlines() == ["1.23.2", "onnx"], process.stderr
    check(tmp_path / "out.npy", expected)


def test_an_opset_that_is_too_new_for_it_takes_the_fallback(newer, expected, tmp_path):
    process = predict(newer, True, tmp_path / "out.npy")
    assert process.stdout.splitlines() == ["1.23.2", "torchscript"], process.stderr
    assert "it has opset 24 of ai.onnx, and onnxruntime 1.23.2 supports up to 23" in process.stderr
    check(tmp_path / "out.npy", expected)


def test_without_trust_the_error_says_which_opset_it_takes(newer, tmp_path):
    process = predict(newer, False, tmp_path / "out.npy")
    assert process.returncode == 1 and "ProgramNotTrusted" in process.stderr
    assert "it has opset 24 of ai.onnx, and onnxruntime 1.23.2 supports up to 23" in process.stderr
