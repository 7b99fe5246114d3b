"""Matching values of two runs."""

import numpy as np

from packager.parity.diagnosis import matching
from packager.parity.diagnosis.activations import Activation, Activations


def test_values_of_a_different_dtype_or_shape_cannot_be_compared():
    value = Activation("v", "add", (), np.ones(3, np.float32), relative_tolerance=1e-5)
    assert matching.compare_activation(value, np.ones(3)) is None
    assert matching.compare_activation(value, np.ones((3, 1), np.float32)) is None
    assert matching.compare_activation(value, None) is None
    assert matching.compare_activation(value, np.ones(3, np.float32)).within_tolerance
    assert not matching.matches(value, np.ones(3))
    assert not matching.matches(value, np.full(3, 1.001, np.float32))
    assert matching.matches(value, np.full(3, 1.00001, np.float32))


def activations(*arrays):
    return Activations(tuple(Activation("", "add", (), array, relative_tolerance=1e-5) for array in arrays), {})


def test_values_match_by_what_they_hold_and_a_near_miss_is_no_match():
    array = np.linspace(0.1, 1, 40, dtype=np.float32)
    reference = activations(array, None, array + 1, np.arange(3))
    suspect = activations(np.arange(3), array * np.float32(1.004), None, array + 1, array + 1)
    assert matching.match_values(reference, suspect) == ([[], [], [3, 4], [0]], [[3], [], [], [2], [2]])
    assert matching.find_near_misses(reference, suspect) == ({0, 2}, {1, 3, 4})


def test_elements_between_the_samples_are_compared_too():
    array = np.linspace(0.1, 1, 40, dtype=np.float32)
    changed = array.copy()
    changed[1] += 1  # every second element is sampled
    (value,) = activations(array).values
    assert not matching.matches(value, changed)
    assert matching.match_values(activations(array), activations(changed)) == ([[]], [[]])
