"""What the black boxes search, and the section of the config that says so."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fds_dist.commands.compare.rivals.staircase import cosine_buckets
from fds_dist.commands.compare.space import search_ranges
from fds_dist.common.domain import NATURAL_DOMAIN
from fds_dist.common.faults import UserError
from fds_dist.config import load_config
from fds_dist.config.compare import CompareConfig
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace

MINIMAL = {"task": {"name": "digits"}, "hyperparameters": {"lr": {"init": 0.1, "step": 0.1}}}


def space(*owners: Hyperparameter) -> HyperparameterSpace:
    return HyperparameterSpace(owners)


def learned(name: str, low: float | None = None, high: float | None = None, buckets: int = 1) -> Hyperparameter:
    """A hyperparameter with its natural bounds, or others."""
    natural = NATURAL_DOMAIN.get(name, (-math.inf, math.inf))
    bounds = natural[0] if low is None else low, natural[1] if high is None else high
    return Hyperparameter(name, 0.1, 0.1, buckets, bounds)


ALL = space(learned("lr", buckets=2), learned("momentum"), learned("weight_decay"))


def test_ranges_without_a_word_are_the_customary_ones_on_log_scales() -> None:
    ranges = search_ranges(ALL, CompareConfig())
    assert [(found.low, found.high, found.owner.scale) for found in ranges] == [
        (1e-4, 1.0, "log"),
        (0.0, 0.99, "log"),
        (1e-6, 1e-2, "log"),
    ]


def test_log_scales_spread_factors_evenly_those_of_one_minus_momentum_too() -> None:
    ranges = search_ranges(ALL, CompareConfig())
    middle = [each.value(sum(each.coordinates) / 2) for each in ranges]
    # Half-way in the logarithm: the geometric mean, of 1 and 0.01 for 1 - momentum. 1e-12: a few roundings.
    assert middle == pytest.approx([1e-2, 0.9, 1e-4], rel=1e-12)


def test_a_cosine_falls_from_one_height_and_leaves_the_others_constant() -> None:
    owners = space(learned("lr", low=0.05, buckets=3), learned("momentum", buckets=2), learned("weight_decay"))
    steps = [(1 + math.cos(math.pi * (step + 0.5) / 3000)) / 2 for step in range(3000)]
    means = [sum(steps[bucket * 1000 : (bucket + 1) * 1000]) / 1000 for bucket in range(3)]
    found = cosine_buckets(owners, [0.4, 0.8, 1e-3])
    # 1e-6: the midpoint rule's error on a thousand steps.
    assert found[:2] == pytest.approx([0.4 * mean for mean in means[:2]], rel=1e-6)
    assert 0.4 * means[2] < found[2] == 0.05  # the bound
    assert found[3:] == pytest.approx([0.8, 0.8, 1e-3], rel=1e-12)


def test_a_cosine_in_knots_is_its_values_there() -> None:
    owners = space(replace(learned("lr", buckets=5), shape="linear"))
    expected = [0.2 * (1 + math.cos(math.pi * knot / 4)) for knot in range(5)]
    assert cosine_buckets(owners, [0.4]) == pytest.approx(expected, rel=1e-14, abs=1e-15)


def test_linear_scales_spread_values_evenly() -> None:
    options = CompareConfig(scale="linear", ranges={"lr": [0.0, 2.0]})
    ranges = search_ranges(ALL, options)
    middle = [each.value(sum(each.coordinates) / 2) for each in ranges]
    assert middle == pytest.approx([1.0, 0.495, 0.0050005], rel=1e-12)


def test_the_ends_of_a_range_are_never_left_by_rounding() -> None:
    for found in search_ranges(ALL, CompareConfig(ranges={"lr": [0.1, 0.3], "momentum": [0.3, 0.7]})):
        for coordinate in found.coordinates:
            for nudged in (math.nextafter(coordinate, -math.inf), coordinate, math.nextafter(coordinate, math.inf)):
                assert found.low <= found.value(nudged) <= found.high


def test_finite_bounds_are_the_range_where_they_are_the_users_own() -> None:
    bounded = space(learned("lr", 1e-3, 0.5), learned("momentum", 0.0, 0.999), learned("smoothing", 0.0, 0.2))
    ranges = search_ranges(bounded, CompareConfig())
    assert [(found.low, found.high) for found in ranges] == [(1e-3, 0.5), (0.0, 0.999), (0.0, 0.2)]
    # No logarithm of 0: this one stays linear.
    assert [found.owner.scale for found in ranges] == ["log", "log", "linear"]


def test_one_range_serves_all_parameter_groups() -> None:
    grouped = space(learned("lr.norm"), learned("lr.rest"))
    ranges = search_ranges(grouped, CompareConfig(ranges={"lr": [0.01, 0.1]}))
    assert [(found.low, found.high) for found in ranges] == [(0.01, 0.1)] * 2


def test_all_mistakes_in_ranges_are_reported_at_once() -> None:
    wrong = space(learned("lr", 0.0, 0.5), learned("smoothing"))
    with pytest.raises(UserError) as raised:
        search_ranges(wrong, CompareConfig(ranges={"momentun": [0.1, 0.2], "lr": [0.1, 1.0]}))
    assert [fault.key for fault in raised.value.faults] == [
        "compare.ranges.momentun",
        "compare.ranges.lr",
        "compare.ranges.smoothing",
    ]


def test_the_section_has_defaults_and_reads_back() -> None:
    config = load_config({**MINIMAL, "compare": {"ranges": {"lr": [0.001, 1]}, "budget": 500}})
    assert config.compare.methods == ["fds", "greedy", "cosine", "linear", "random", "tpe", "hyperband"]
    assert (config.compare.seeds, config.compare.judge_seeds, config.compare.scale) == (3, 3, "log")
    assert load_config(config.resolved()).compare == config.compare
    assert load_config(MINIMAL, ["compare.methods=[fds, bohb]"]).compare.methods == ["fds", "bohb"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("compare.methods=[]", "compare.methods: [] is empty"),
        ("compare.methods=[fds, fds]", "names a method twice"),
        ("compare.methods=[tpee]", "did you mean tpe?"),
        ("compare.ranges.lr=[1, 0.1]", "compare.ranges.lr: [1, 0.1] is not valid; expected two numbers, [low, high]"),
        ("compare.ranges.lr=[0.1, .inf]", "compare.ranges.lr"),
        ("compare.ranges.lr=0.1", "compare.ranges.lr: 0.1 is a decimal number; expected two numbers, [low, high]"),
        ("compare.ranges.lr=[a, b]", "compare.ranges.lr: ['a', 'b'] is not valid"),
        ("compare.seed=3", "did you mean compare.seeds?"),
        ("compare.budget=0", "compare.budget: 0 is out of range"),
        ("compare.judge_seeds=0", "compare.judge_seeds: 0 is out of range"),
        ("compare.scale=log10", "compare.scale: 'log10' is not valid"),
    ],
)
def test_a_wrong_value_gives_one_line_that_says_what_is_right(override: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config(MINIMAL, [override])
    (fault,) = raised.value.faults
    assert words in str(fault)
