"""Memory settings of a build: the host's garbage collector is left as it was."""

import gc
import sys

import numpy as np
import pytest

from packager.common.process_memory import freeze_garbage_collector, get_transient_bytes, pause_garbage_collection

BLOCK_BYTES = 1 << 27


@pytest.fixture
def collector():
    """Give the test a collector without frozen objects, and leave it so."""
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("frozen_by_host", [False, True])
def test_the_collector_is_enabled_again_and_only_what_the_host_froze_stays_frozen(collector, frozen_by_host):
    if frozen_by_host:
        gc.freeze()
    with pause_garbage_collection():
        assert not gc.isenabled()
        freeze_garbage_collector()
    assert gc.isenabled()
    assert (gc.get_freeze_count() > 0) == frozen_by_host


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say how large a process was")
def test_memory_that_was_freed_since_the_peak_is_transient():
    block = np.ones(BLOCK_BYTES, np.uint8)  # mapped by itself, so it is gone at once
    del block
    assert get_transient_bytes() > 0.9 * BLOCK_BYTES
