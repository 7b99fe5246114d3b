"""Get and set the states of random number generators.

On each rank of a run, the global generators of Python, numpy, torch and CUDA, and those that the loop names itself.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

Generator = torch.Generator | random.Random | np.random.Generator
_log = logging.getLogger("packager.checkpoint")


def get_random_states() -> dict[str, Any]:
    """Return the states of the global generators, by library; `cuda` has one for each device that is in use."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no types there
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set the states of the global generators; those of more CUDA devices than there are here are left out."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    cuda, devices = states.get("cuda", []), torch.cuda.device_count()
    if cuda and len(cuda) != devices:
        _log.warning("random states of %d CUDA devices were saved, but there are %d here", len(cuda), devices)
    for index, state in enumerate(cuda[:devices]):
        torch.cuda.set_rng_state(state, index)


def get_generator_state(generator: Generator) -> Any:
    """Return the state of one generator."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.getstate() if isinstance(generator, random.Random) else generator.bit_generator.state


def set_generator_state(generator: Generator, state: Any) -> None:
    """Set the state of one generator."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.bit_generator.state = state


def states_for_rank(states: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """Return the states that a rank restores: those of rank 0 if the run was saved on fewer ranks."""
    if rank >= len(states):
        _log.warning("random states of %d ranks were saved: rank %d uses those of rank 0", len(states), rank)
        return states[0]
    return states[rank]
