"""Into how many calls a number of tangents is split."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from fds_dist.tangents.compiled.calls import GAIN, FastestCalls, Timed, fewest_calls


@pytest.mark.parametrize(
    ("rows", "sizes", "expected"),
    [(0, (4,), ()), (1, (4,), (4,)), (9, (1, 2, 4), (4, 4, 1)), (7, (2, 4), (4, 4)), (8, (1, 2, 3, 4), (4, 4))],
)
def test_fewest(rows: int, sizes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert fewest_calls(rows, sizes) == expected


def splits(rows: int, sizes: list[int]) -> list[tuple[int, ...]]:
    """All ways to split, in all orders."""
    return [()] if rows <= 0 else [(size, *others) for size in sizes for others in splits(rows - size, sizes)]


@pytest.mark.parametrize("seed", range(20))
def test_the_split_takes_the_least_time_of_all_or_is_the_one_with_fewest_calls(seed: int) -> None:
    draw = random.Random(seed)
    sizes = sorted({*draw.sample(range(1, 6), 3), 6})
    seconds = {size: draw.uniform(0.5, 1.5) + draw.uniform(0, 1) * size for size in sizes}
    calls, shared = FastestCalls(dict(reversed(seconds.items()))), FastestCalls(seconds)
    for rows in (10, *range(1, 10)):
        found = calls(rows)
        assert found == shared(rows)  # whatever was asked for before

        def taken(split: tuple[int, ...]) -> float:
            return sum(seconds[size] for size in split)

        fewest = fewest_calls(rows, sizes)
        least = min(map(taken, splits(rows, sizes)))
        assert sum(found) >= rows
        if least < (1 - GAIN) * taken(fewest) - 1e-12:  # sums in other orders
            assert taken(found) == pytest.approx(least, rel=1e-12)
        elif least > (1 - GAIN) * taken(fewest) + 1e-12:
            assert found == fewest


def test_a_small_gain_is_not_worth_another_call() -> None:
    assert FastestCalls({1: 1.0, 2: 2.0 + 0.08})(2) == (2,)
    assert FastestCalls({1: 1.0, 2: 2.0 + 0.12})(2) == (1, 1)


def after(calls: FastestCalls, seconds: dict[int, float], steps: int, rows: int) -> list[tuple[int, ...]]:
    """The splits of some steps, whose calls take so long."""
    splits = []
    for _ in range(steps):
        splits.append(calls(rows))
        for size in splits[-1]:
            calls.took(size, seconds[size])
    return splits


def test_times_follow_those_of_the_calls_that_are_made() -> None:
    trial = {1: 1.0, 2: 1.5, 3: 1.9, 4: 2.4}
    calls = FastestCalls(trial, learns=True)
    assert calls(4) == (4,)
    splits = after(calls, trial | {4: 3.5}, 60, 4)
    assert splits[0] == (4,) and splits[-1] in {(2, 2), (3, 1)}
    stays = FastestCalls(trial)
    assert set(after(stays, trial | {4: 3.5}, 60, 4)) == {(4,)}


def test_what_was_slow_in_the_trial_is_tried_again_one_day() -> None:
    calls, real = FastestCalls({1: 1.0, 2: 1.25, 3: 3.0, 4: 2.4}, learns=True), {1: 1.0, 2: 1.1, 3: 3.0, 4: 2.4}
    splits = after(calls, real, 3000, 4)
    assert splits[0] == (4,) and splits.count((2, 2)) > 1500  # 2.2 seconds, not 2.4, however rarely that is tried
    known = after(FastestCalls(real, learns=True), real, 1000, 4)
    assert known[0] == (2, 2) and known.count((2, 2)) > 800


def test_the_least_time_of_each_size_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 5.0, 10.0, 13.0, 20.0, 24.0, 30.0, 37.0])
    monkeypatch.setattr("fds_dist.tangents.compiled.calls.perf_counter", lambda: next(times))
    timed = Timed(lambda inputs: len(inputs.directions))
    results = [timed(SimpleNamespace(directions=[0] * size)) for size in (1, 2, 1, 2)]
    assert results == [1, 2, 1, 2] and timed.seconds == {1: 4.0, 2: 3.0}
