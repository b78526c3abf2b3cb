"""Hypergradients of vector hyperparameters: weights of classes, samples and data sources, and of regularizers.

The references are autograd through a written-out run of the plain module, and central differences of that run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anywhere_tasks import as_tensors, tasks, unrolled_hypergradients, unrolled_loss
from problems import flat, make_problem, relative_error

from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.plan import greedy_cost, tangent_steps
from fds_dist.inner.run import InnerRun
from fds_dist.inner.witness import Witness
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace

EXACT = 1e-12
"""Between exact methods in float64: rounding (1e-16), amplified in a few steps."""
HORIZON = 7
CASES = tasks()
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "jvp": ("forward", {"method": "jvp"}),
    "jvp, batched": ("forward", {"method": "jvp", "chunk_size": 3}),
    "double_backward": ("forward", {"method": "double_backward"}),
    "reverse": ("reverse", {}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_a_vector_has_the_hypergradients_of_the_unrolled_run(name: str, way: str) -> None:
    (task, values), (estimator, options) = CASES[name], WAYS[way]
    run = InnerRun(make_problem(task, values, **options), flat(values), 0, HORIZON)
    reference = unrolled_hypergradients(task, values, HORIZON)
    found = ESTIMATORS[estimator](run).hypergradients
    space = run.problem.space
    for ours, theirs in zip(space.rows(found).values(), space.rows(reference).values(), strict=True):
        assert relative_error(ours, theirs) < EXACT


@pytest.mark.parametrize("name", CASES)
def test_the_unrolled_run_agrees_with_differences(name: str) -> None:
    task, values = CASES[name]
    reference, values = unrolled_hypergradients(task, values, HORIZON), as_tensors(values)
    vector = values[name].detach()
    direction = torch.linspace(-1.0, 1.0, vector.numel(), dtype=torch.float64).reshape(vector.shape)
    h = 1e-5  # truncation h²: 1e-10; rounding 1e-16/h: 1e-11 of a loss of 1
    ends = [unrolled_loss(task, {**values, name: vector + s * h * direction}, HORIZON).item() for s in (1, -1)]
    slope = torch.tensor(reference[-vector.numel() :], dtype=torch.float64) @ direction.flatten()
    assert abs((ends[0] - ends[1]) / (2 * h) - slope.item()) < 1e-7 * max(1.0, abs(slope.item()))


def test_greedy_takes_a_tangent_per_number() -> None:
    task, values = CASES["mix"]
    problem = make_problem(task, values)
    found = ESTIMATORS["greedy"](InnerRun(problem, flat(values), 0, HORIZON)).hypergradients
    assert len(found) == problem.space.size == 9 and all(found[3:])
    assert greedy_cost(problem, HORIZON, 0.0) == HORIZON * (2 + 2 * 4)  # lr, momentum and two weights
    single = make_problem(task, {name: row for name, row in values.items() if name != "mix"}, {"mix": 1.0})
    windows = [3, 2, 2]  # of 7 steps; bucket b has b + 1 live tangents of two numbers each
    assert tangent_steps(problem, HORIZON) - tangent_steps(single, HORIZON) == 2 * sum(
        (bucket + 1) * steps for bucket, steps in enumerate(windows)
    )


def test_a_step_alone_gives_greedy_its_exact_hypergradient() -> None:
    task, values = CASES["penalties"]
    values = {name: row[:1] for name, row in values.items()}
    greedy = ESTIMATORS["greedy"](InnerRun(make_problem(task, values), flat(values), 0, 1)).hypergradients
    assert relative_error(greedy, unrolled_hypergradients(task, values, 1)) < EXACT


@pytest.mark.parametrize("name", CASES)
def test_the_witness_trains_with_the_same_vectors(name: str) -> None:
    task, values = CASES[name]
    problem = make_problem(task, values)
    witness = Witness(problem, steps=3, exact=True)
    error = witness.compare_steps()
    assert error is not None and error < 1e-13  # three steps of rounding
    error = witness.compare_hypergradient(ESTIMATORS["forward"])
    assert error is not None and error < 1e-6  # truncation and rounding of the best difference


def test_the_elements_of_a_vector_follow_its_buckets() -> None:
    vector = Hyperparameter("mix", init=(0.5, 1.5), step=0.1, buckets=2, size=2)
    space = HyperparameterSpace((Hyperparameter("lr", 0.1, 0.1, buckets=2), vector), {"momentum": 0.9})
    assert space.initial() == [0.1, 0.1, 0.5, 1.5, 0.5, 1.5]
    assert [str(slot) for slot in space.elements] == [
        "lr[0]", "lr[1]", "mix[0][0]", "mix[0][1]", "mix[1][0]", "mix[1][1]",
    ]  # fmt: skip
    assert space.starts(10) == [0, 5, 0, 0, 5, 5]
    named = {"lr": [0.1, 0.2], "mix": [[1.0, 2.0], [3.0, 4.0]]}
    assert space.unpack(space.pack(named)) == named
    *_, last = space.segments(10)
    assert space.read(last.readings, space.pack(named)) == [0.2, 3.0, 4.0, 0.9]
    assert space.schedule(space.pack(named), 10).at(7) == {"lr": 0.2, "mix": (3.0, 4.0), "momentum": 0.9}
    with pytest.raises(ValueError, match="do not fit"):
        space.pack({"lr": [0.1, 0.2], "mix": [1.0, 2.0]})
