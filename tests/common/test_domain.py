"""The domains of hyperparameters, in words."""

from __future__ import annotations

import math

import pytest

from fds_dist.common.domain import BELOW_ONE, UNBOUNDED, has_logarithm, interval


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((0.0, math.inf), "a number of at least 0"),
        ((0.0, BELOW_ONE), "a number of at least 0 and below 1"),
        ((0.1, 0.5), "a number of at least 0.1 and at most 0.5"),
        ((-math.inf, 0.5), "a number at most 0.5"),
        (UNBOUNDED, "a number"),
    ],
)
def test_bounds_in_words(bounds: tuple[float, float], words: str) -> None:
    assert interval(*bounds) == words


@pytest.mark.parametrize(
    ("name", "value", "has_one"),
    [("lr", 1e-9, True), ("lr", 0.0, False), ("momentum", 0.0, True), ("momentum", 1.0, False), ("beta2", -3.0, True)],
)
def test_what_lies_below_one_has_the_logarithm_of_its_complement(name: str, value: float, has_one: bool) -> None:
    assert has_logarithm(name, value) is has_one
