"""A bundle is closed, pickled, and used in other processes, however they were started."""

import multiprocessing
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
from projects import python, reseal

import packager
from packager.errors import FingerprintWrong, PackagerError, ProgramNotTrusted
from packager.runtime import loader
from packager.runtime.session_settings import check_settings

IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)


@pytest.fixture(scope="module")
def expected(built):
    return packager.load(built.bundle)(image=IMAGE)["logits"]


def predict(bundle):
    return bundle(image=IMAGE)["logits"]


def test_a_closed_bundle_does_not_run_and_cannot_be_pickled(built, expected):
    with packager.load(built.bundle) as bundle:
        np.testing.assert_array_equal(predict(bundle), expected)
    with pytest.raises(ValueError, match="closed"):
        predict(bundle)
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(bundle)
    bundle.close()


def test_a_pickled_bundle_is_opened_with_the_same_settings(built, expected):
    bundle = packager.load(built.bundle, threads=1, fallback=False)
    again = pickle.loads(pickle.dumps(bundle))
    np.testing.assert_array_equal(predict(again), expected)
    assert (again.fingerprint, again._backend.threads) == (bundle.fingerprint, 1)


def test_a_bundle_that_was_loaded_without_verify_is_copied_without_it(bundle, expected):
    (bundle / "README.md").unlink()
    again = pickle.loads(pickle.dumps(packager.load(bundle, verify=False)))
    np.testing.assert_array_equal(predict(again), expected)


def test_a_pickled_bundle_opens_no_other_bundle(built, bundle):
    content = pickle.dumps(packager.load(bundle))
    shutil.rmtree(bundle)
    shutil.copytree(built.bundle, bundle)
    (bundle / "README.md").write_text("another")
    reseal(bundle)
    with pytest.raises(FingerprintWrong):
        pickle.loads(content)


def test_a_copy_does_not_run_a_program_that_the_first_caller_did_not_trust(built):
    """A copy is opened with a fingerprint, which pins a bundle where a caller asks for it."""
    settings = check_settings(["CUDAExecutionProvider"], None, None, None)  # which no machine of a test has
    opening = packager.load(built.bundle)._opening
    with pytest.raises(ProgramNotTrusted):
        loader._open(replace(opening, settings=settings))
    pinned = packager.load(built.bundle, fingerprint=built.fingerprint)._opening
    assert loader._open(replace(pinned, settings=settings)).backend == "torchscript"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("threads", [1, 2])
def test_workers_predict_what_their_parent_predicts(built, expected, method, threads):
    bundle = packager.load(built.bundle, threads=threads)
    predict(bundle)  # its threads are running
    with multiprocessing.get_context(method).Pool(2) as pool:
        for logits in pool.map(predict, [bundle] * 4):
            np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)


FORK = """
import os, sys
import numpy as np
import packager

bundle = packager.load(sys.argv[1], threads=int(sys.argv[2]))
image = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
expected = bundle(image=image)["logits"]
for _ in range(3):
    child = os.fork()
    if child == 0:
        assert np.allclose(bundle(image=image)["logits"], expected, atol=1e-6)
        sys.exit(7)  # with all of Python's clean-up
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("done")
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_forked_worker_ends_as_it_should(built, threads):
    process = python(FORK, built.bundle, threads)
    assert (process.returncode, process.stdout) == (0, "done\n"), process.stderr


def test_a_fork_without_threads_shares_the_session_and_others_open_it_again(built):
    code = FORK.replace(
        "    if child == 0:\n", "    if child == 0:\n        print(bundle._backend is not None, flush=True)\n"
    )
    assert python(code, built.bundle, "1").stdout == "True\n" * 3 + "done\n"
    assert python(code, built.bundle, "2").stdout == "False\n" * 3 + "done\n"


def test_a_worker_that_cannot_open_the_bundle_says_so(bundle):
    loaded = packager.load(bundle, threads=2)
    content = pickle.dumps(loaded)
    shutil.rmtree(bundle)
    with pytest.raises(PackagerError, match="no such folder"):
        pickle.loads(content)
