"""Hypergradients through a task's `augment`: training inputs changed at random, with a strength that is learned.

The references are autograd through a written-out run of the plain module, which draws the same numbers, and central
differences of that run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from anywhere_tasks import BATCH, AugmentedTask, as_tensors, augmented_task, unrolled_hypergradients, unrolled_loss
from problems import TensorTask, flat, make_problem, relative_error
from torch import Tensor

from fds_dist.common.faults import UserError
from fds_dist.inner.dry_run import dry_run
from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.run import InnerRun
from fds_dist.inner.witness import Witness
from fds_dist.tasks.base import takes_hyperparameters, task_faults
from fds_dist.tasks.datasets import task_from_datasets

EXACT = 1e-12
"""Between exact methods in float64: rounding (1e-16), amplified in a few steps."""
HORIZON = 7
TASK, VALUES = augmented_task()
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "jvp": ("forward", {"method": "jvp"}),
    "jvp, batched": ("forward", {"method": "jvp", "chunk_size": 3}),
    "double_backward": ("forward", {"method": "double_backward"}),
    "reverse": ("reverse", {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_augmentation_has_the_hypergradients_of_the_unrolled_run(way: str) -> None:
    estimator, options = WAYS[way]
    run = InnerRun(make_problem(TASK, VALUES, **options), flat(VALUES), 0, HORIZON)
    found, reference = ESTIMATORS[estimator](run).hypergradients, unrolled_hypergradients(TASK, VALUES, HORIZON)
    space = run.problem.space
    for ours, theirs in zip(space.rows(found).values(), space.rows(reference).values(), strict=True):
        assert relative_error(ours, theirs) < EXACT and all(theirs)


@pytest.mark.parametrize(("name", "entry"), [("brightness", 0), ("noise", 3)])
def test_the_unrolled_run_agrees_with_differences(name: str, entry: int) -> None:
    reference = dict(
        zip(VALUES, torch.tensor(unrolled_hypergradients(TASK, VALUES, HORIZON)).split([2, 1, 1, 4]), strict=True)
    )
    h = 1e-5  # truncation h²: 1e-10; rounding 1e-16/h: 1e-11 of a loss of 1

    def loss_at(shift: float) -> float:
        values = {key: value.detach().clone() for key, value in as_tensors(VALUES).items()}
        values[name].view(-1)[entry] += shift
        values = {key: value.requires_grad_() for key, value in values.items()}
        return unrolled_loss(TASK, values, HORIZON).item()

    assert abs((loss_at(h) - loss_at(-h)) / (2 * h) - reference[name][entry].item()) < 1e-7


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_witness_augments_as_the_engine_does(accumulate: int) -> None:
    problem = replace(make_problem(TASK, VALUES), accumulate=accumulate)
    witness = Witness(problem, steps=3, exact=True)
    error = witness.compare_steps()
    assert error is not None and error < 1e-13  # three steps of rounding
    assert witness.compare_products() < 1e-7  # of differences
    error = witness.compare_hypergradient(ESTIMATORS["forward"])
    assert error is not None and error < 1e-6


def test_training_is_augmented_and_validation_is_not() -> None:
    values, parts = {"lr": [0.0], "momentum": [0.5]}, (TASK.build, TASK.train, TASK.val)
    tasks = TensorTask(*parts, batch_size=BATCH), Loud(*parts, batch_size=BATCH)
    plain, loud = (ESTIMATORS["forward"](InnerRun(make_problem(task, values), flat(values), 0, 3)) for task in tasks)
    assert loud.val_loss == plain.val_loss  # at lr 0 the weights stay
    assert loud.hypergradients[0] != plain.hypergradients[0]


def test_each_step_and_outer_step_draws_new_numbers_and_the_same_ones_again() -> None:
    seen: list[Tensor] = []

    class Seen(AugmentedTask):
        def augment(self, inputs: Tensor, generator: torch.Generator, h: Any) -> Tensor:
            seen.append(torch.rand(3, generator=generator))
            return inputs

    task = Seen(TASK.build, TASK.train, TASK.val, batch_size=BATCH)
    problem = make_problem(task, {"lr": [0.1]}, method="plain")
    for number in (0, 0, 1):
        run_horizon(InnerRun(problem, [0.1], number, 2))
    first, second, third, *_ = (torch.cat(seen[at : at + 2]) for at in (0, 2, 4))
    assert torch.equal(first, second) and not torch.equal(first, third) and not torch.equal(seen[0], seen[1])


class Loud(AugmentedTask):
    def augment(self, inputs: Tensor, generator: torch.Generator, h: Any) -> Tensor:
        return inputs + torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)


def in_place(self: Any, inputs: Tensor, generator: torch.Generator, h: Any) -> Tensor:
    return inputs.add_(1.0) * h["brightness"]


def other_numbers(self: Any, inputs: Tensor, generator: torch.Generator, h: Any) -> Tensor:
    return inputs + h["brightness"] * torch.rand_like(inputs)


def fewer(self: Any, inputs: Tensor, generator: torch.Generator, h: Any) -> Tensor:
    return inputs[1:] * h["brightness"]


def cut_off(self: Any, inputs: Tensor, generator: torch.Generator, h: Any) -> Tensor:
    return inputs * h["brightness"].item()


def unknown(self: Any, inputs: Tensor, generator: torch.Generator, h: Any) -> Tensor:
    return inputs * h["brightnes"]


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        (in_place, "task.augment: changes its inputs in place"),
        (other_numbers, "task.augment: draws random numbers that do not come from its generator"),
        (fewer, r"task.augment: gave \[7, 1, 6, 6\] float64 for inputs \[8, 1, 6, 6\] float64"),
        (cut_off, "task.augment: the inputs that it gives do not depend on brightness"),
        (unknown, r"task.augment: augment\(inputs, generator, h\) raised KeyError: 'brightnes'"),
    ],
)
def test_what_cannot_be_is_one_line_before_training(augment: Any, words: str) -> None:
    task = type("Own", (AugmentedTask,), {"augment": augment})(TASK.build, TASK.train, TASK.val, batch_size=BATCH)
    with pytest.raises(UserError, match=words):
        dry_run(make_problem(task, {"lr": [0.1], "brightness": [0.3]}), "auto")


def test_an_augmentation_of_two_parameters_is_named() -> None:
    task = type("Own", (AugmentedTask,), {"augment": lambda self, inputs, generator: inputs})
    (fault,) = task_faults(task(TASK.build, TASK.train, TASK.val))
    assert str(fault) == (
        "task.augment: cannot be called with 3 arguments; expected a function augment(inputs, generator, h)"
    )


def test_the_helper_hands_an_augment_of_three_parameters_to_the_step_and_applies_one_of_two() -> None:
    x, y = torch.zeros(20, 3), torch.zeros(20, dtype=torch.int64)
    step = task_from_datasets((x, y), batch_size=4, augment=lambda inputs, generator, h: inputs + h["noise"])
    data = task_from_datasets((x, y), batch_size=4, augment=lambda inputs, generator: inputs + 1)
    assert not next(iter(step.train_batches(0, 0)))[0].any() and next(iter(data.train_batches(0, 0)))[0].all()
    assert takes_hyperparameters(step) and not takes_hyperparameters(data) and not task_faults(step)
