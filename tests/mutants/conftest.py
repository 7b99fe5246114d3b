"""Fixtures of the mutation tests: bundles that are built once, and changed as copies."""

import bundles
import onnx
import pytest
from oracle import OnnxOracle

from packager.bundle import layout


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A function that returns the bundle of an architecture at a level, built once; it must not be changed."""
    folder = tmp_path_factory.mktemp("mutants")
    return lambda architecture, level: bundles.shared(level, architecture, folder)


@pytest.fixture(scope="session")
def onnx_of(shared):
    """A function that returns the graph of a bundle and the oracle of its mutants."""
    oracles = {}

    def graph_and_oracle(architecture, level):
        bundle = shared(architecture, level)
        if bundle not in oracles:
            oracles[bundle] = OnnxOracle(architecture, bundle)
        return onnx.load(bundle / layout.ONNX), oracles[bundle]

    return graph_and_oracle
