"""Restore the settings of the process that a build runs in, which may be a notebook or a server.

A build sets the number of torch's threads and silences logging and warnings, and the user's code may set anything
when it is imported. Imported modules stay imported, except the user's own: see `packager.model.importing`.
"""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def restored() -> Iterator[None]:
    """Restore the settings of the process when the block ends, whether or not it raises.

    These are torch's number of threads, default dtype, gradient mode and random state; the random states of `random`
    and numpy; the level of `logging.disable`, the warning filters, and the environment. Threads that the block starts
    must end inside it.
    """
    with ExitStack() as stack, warnings.catch_warnings():
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        stack.callback(torch.random.set_rng_state, torch.random.get_rng_state())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(logging.disable, logging.root.manager.disable)
        stack.callback(_restore_environment, dict(os.environ))
        yield


def _restore_environment(before: Mapping[str, str]) -> None:
    """Write only what differs, so that other threads of the host never see a half-empty environment."""
    for name in set(os.environ) - set(before):
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
