"""Which batches an inner run reads, and what the global generators have to do with them."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import flat, images, make_problem, mlp
from torch import Tensor, nn

from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.tasks.augmentation import Augmentation
from fds_dist.tasks.in_memory import TensorTask, draws_nothing

BATCH, STEPS = 4, 9
BUCKETS = {"lr": [0.05, 0.05]}


def noisy(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Draws from all global generators, as a user's function may."""
    return inputs + torch.rand(()) + np.random.rand() + random.random()


def task_of(augment: Callable[..., Tensor] | None) -> TensorTask:
    samples, labels = images(BATCH * (STEPS + 1), "train")
    return TensorTask(samples, labels, batch_size=BATCH, seed=1, model=lambda seed: mlp(), augment=augment)


def problem_of(task: TensorTask) -> Problem:
    return make_problem(task, BUCKETS)


@pytest.mark.parametrize("augment", [None, Augmentation(crop=1, flip=True), noisy])
def test_a_run_that_begins_anywhere_gets_the_batches_of_the_whole_run(augment: Callable[..., Tensor] | None) -> None:
    problem = problem_of(task_of(augment))
    whole = [inputs for (inputs, _), _ in zip(problem.batches(0), range(2 * STEPS), strict=False)]
    for first in (0, 1, STEPS - 1, STEPS, STEPS + 4):
        torch.rand(3)  # what was drawn before is no matter
        random.random()
        rest = [inputs for (inputs, _), _ in zip(problem.batches(0, first), range(2 * STEPS - first), strict=False)]
        assert all(torch.equal(*pair) for pair in zip(whole[first:], rest, strict=True))


@pytest.mark.parametrize("augment", [None, noisy])
def test_who_takes_batches_meets_the_global_generators_as_they_were(augment: Callable[..., Tensor] | None) -> None:
    def seed_all() -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)

    def drawn() -> list[float]:
        seed_all()
        numbers = list[float]()
        for _ in zip(range(STEPS), problem.batches(0), strict=False):
            numbers += [float(torch.rand(())), np.random.rand(), random.random()]
        return numbers

    problem = problem_of(task_of(augment))
    seed_all()
    alone = [each() for _ in range(STEPS) for each in (lambda: float(torch.rand(())), np.random.rand, random.random)]
    assert drawn() == alone


def test_only_known_functions_are_known_to_draw_nothing() -> None:
    class Own(TensorTask):
        """May draw by itself."""

    samples = images(8, "train")
    assert draws_nothing(task_of(None)) and draws_nothing(task_of(Augmentation(crop=1)))
    assert not draws_nothing(task_of(noisy)) and not draws_nothing(Own(*samples, batch_size=2))
    assert not draws_nothing(TensorTask(*samples, batch_size=2, prepare=lambda inputs: inputs))
    assert not draws_nothing(nn.Identity())


class Counting:
    """A source that counts the batches that were read."""

    def __init__(self, source: object) -> None:
        self.source, self.read = source, 0

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self.source, name)

    def batches(self, *arguments: object) -> object:
        for batch in self.source.batches(*arguments):  # type: ignore[attr-defined]
            self.read += 1
            yield batch


def test_a_reverse_sweep_reads_each_batch_on_its_way_there_and_back_alone() -> None:
    task = task_of(Augmentation(crop=1))
    problem, horizon = problem_of(task), 2 * STEPS
    task._train = counting = Counting(task._train)  # type: ignore[assignment]
    ESTIMATORS["reverse"](InnerRun(problem, flat(BUCKETS), 0, horizon))
    assert counting.read == 2 * horizon + 1  # the last one is for validation
