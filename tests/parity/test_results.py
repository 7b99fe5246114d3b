"""What parity.json says about the noise of an output."""

import pytest
from messages import mentions

from packager.parity.results import OutputNoise


@pytest.mark.parametrize(
    ("parts", "note", "facts"),
    [
        ({"float64": 1.25e-7, "one thread": 0.0}, "", ("float64 (1.2e-07)", "one thread (0)")),
        ({"one thread": 2e-7}, "float64 raises TypeError", ("one thread (2e-07)", "float64 raises TypeError")),
        ({}, "float64 raises TypeError", ("rounding", "float64 raises TypeError")),
    ],
    ids=["every evaluation", "without float64", "no evaluation"],
)
def test_the_description_of_noise_names_every_evaluation_and_why_one_is_missing(parts, note, facts, golden):
    golden(OutputNoise(1e-6, 1e-7, parts, note).description, *facts)


def test_a_note_is_given_only_if_there_is_one():
    assert "because" not in OutputNoise(1e-6, 1e-7, {"float64": 1e-7}).description
    mentions(OutputNoise(1e-6, 1e-7, {"float64": 1e-7}, "x").description, "because x")
