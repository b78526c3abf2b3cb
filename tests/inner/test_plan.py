"""The sharding plan: every tangent has one owner, and no rank has much more to do than it must."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from fds_dist.inner.plan import Plan, make_plan
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace


def starts_of(buckets: Sequence[int], horizon: int) -> list[int]:
    owners = (Hyperparameter(f"h{index}", 0.0, 0.1, buckets=count) for index, count in enumerate(buckets))
    return HyperparameterSpace(tuple(owners)).starts(horizon)


def best_load(loads: Sequence[int], ranks: int) -> int:
    """The least possible load of the busiest rank, by exact search: the longest tangents first, bounds cut it short."""
    loads = sorted(loads, reverse=True)
    floor = max(loads[0], -(-sum(loads) // ranks))
    best = sum(loads)

    def search(index: int, taken: list[int]) -> None:
        nonlocal best
        if max(taken) >= best or best == floor:
            return
        if index == len(loads):
            best = max(taken)
            return
        for before in set(taken):  # ranks with equal loads are the same
            rank = taken.index(before)
            search(index + 1, [*taken[:rank], before + loads[index], *taken[rank + 1 :]])

    search(0, [0] * ranks)
    return best


def busiest(plan: Plan) -> int:
    return max(plan.load(rank) for rank in range(len(plan.owned)))


def test_the_exact_search_itself() -> None:
    assert best_load([5, 5, 4, 4, 3, 3, 3], 3) == 9  # longest first gets 11 here
    assert best_load([3, 3, 2, 2, 2], 2) == 6
    assert best_load([7], 3) == 7


@pytest.mark.parametrize("horizon", [7, 200, 207, 1850, 18_500])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_the_papers_buckets_are_within_ten_percent_of_the_best_balance(ranks: int, horizon: int) -> None:
    plan = make_plan(starts_of([7, 1, 1], horizon), horizon, ranks)
    best = best_load([horizon - start for start in plan.starts], ranks)
    assert busiest(plan) <= 1.1 * best
    costs = [plan.cost(rank) for rank in range(ranks)]
    assert max(costs) <= 1.1 * (horizon + 2 * best)  # a plain step costs 1, a tangent step 2


@pytest.mark.parametrize("seed", range(40))
def test_any_plan_is_within_four_thirds_of_the_best_balance(seed: int) -> None:
    rng = random.Random(seed)
    horizon, ranks = rng.randint(10, 1000), rng.randint(1, 5)
    starts = starts_of([rng.randint(1, 5) for _ in range(rng.randint(1, 3))], horizon)
    plan = make_plan(starts, horizon, ranks)
    assert busiest(plan) <= 4 / 3 * best_load([horizon - start for start in starts], ranks)  # Graham's bound


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("buckets", [[7, 1, 1], [1], [5, 5, 5], [3, 2]])
def test_every_tangent_is_owned_once_in_order_of_starts(buckets: list[int], ranks: int) -> None:
    starts = starts_of(buckets, 100)
    plan = make_plan(starts, 100, ranks)
    assert len(plan.owned) == ranks
    assert sorted(index for owned in plan.owned for index in owned) == list(range(len(starts)))
    for owned in plan.owned:
        assert [starts[index] for index in owned] == sorted(starts[index] for index in owned)
    assert sum(plan.load(rank) for rank in range(ranks)) == sum(100 - start for start in starts)


@pytest.mark.parametrize(("count", "ranks"), [(1, 4), (3, 8), (0, 2)])
def test_with_fewer_tangents_than_ranks_no_rank_has_two(count: int, ranks: int) -> None:
    plan = make_plan([0] * count, 50, ranks)
    assert sorted(map(len, plan.owned), reverse=True) == [1] * count + [0] * (ranks - count)
    assert [plan.cost(rank) for rank in range(ranks)] == [50 + 2 * 50 * len(owned) for owned in plan.owned]


@pytest.mark.parametrize(("count", "ranks"), [(9, 2), (9, 4), (16, 8), (17, 3)])
def test_tangents_that_cost_the_same_take_the_same_memory(count: int, ranks: int) -> None:
    rows = [len(owned) for owned in make_plan([0] * count, 50, ranks).owned]
    assert max(rows) - min(rows) <= 1


def test_late_buckets_leave_no_rank_idle_at_the_start() -> None:
    plan = make_plan(starts_of([8], 80), 80, 2)
    assert all(plan.starts[owned[0]] < 20 for owned in plan.owned)  # contiguous ownership: the second begins at 40


def test_live_tangents() -> None:
    plan = make_plan(starts_of([4, 1], 8), 8, 2)
    assert [plan.live(step) for step in range(8)] == [2, 2, 3, 3, 4, 4, 5, 5]


def test_the_plan_is_the_same_on_every_rank() -> None:
    starts = starts_of([7, 3, 1], 500)
    assert make_plan(starts, 500, 4) == make_plan(tuple(starts), 500, 4)


@pytest.mark.parametrize(
    ("starts", "ranks", "message"),
    [([0], 0, "at least 1 is needed"), ([0, 10], 2, "within the horizon of 10"), ([-1], 2, "within the horizon")],
)
def test_what_cannot_be_planned_is_refused(starts: list[int], ranks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(starts, 10, ranks)
