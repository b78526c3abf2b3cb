"""Tried before training: whether a task's `augment` can be differentiated and repeated."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_leaves

from fds_dist.common.batch import common_rows, described, inputs_of, map_tensors, tensors_in
from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.inner.problem import Problem
from fds_dist.tangents.methods import TrialPoint
from fds_dist.tasks.augment import augmentation, augmented
from fds_dist.tasks.base import loss_takes_hyperparameters
from fds_dist.tasks.inspection import same_tensor


def check_augment(problem: Problem, point: TrialPoint) -> None:
    """Calls the task's `augment`, if it has one, twice on the first batch.

    Raises:
        UserError: it fails, changes its inputs in place or their number, draws from another generator than the one that
            it gets, or gives inputs that do not depend on the hyperparameters although nothing else does.
    """
    augment = augmentation(problem.task)
    if augment is None:
        return
    inputs, theta = inputs_of(point.part.batch), point.theta.detach().requires_grad_()
    copies = tensors_in(map_tensors(torch.clone, inputs))
    state = torch.get_rng_state()
    with user_code("task.augment", "augment(inputs, generator, h)", f" on inputs {described(inputs)}"):
        first, second = (augmented(augment, inputs, 0, problem.named(theta)) for _ in range(2))
    if not all(map(same_tensor, tensors_in(inputs), copies)):
        raise UserError(Fault("task.augment", "changes its inputs in place", "new tensors, such as inputs + noise"))
    if not torch.equal(state, torch.get_rng_state()) or not all(
        map(same_tensor, tensors_in(first), tensors_in(second))
    ):
        problem_text = "draws random numbers that do not come from its generator"
        raise UserError(Fault("task.augment", problem_text, "generator=generator in every draw"))
    if common_rows(first) != common_rows(inputs):
        given = f"gave {described(first)} for inputs {described(inputs)}"
        raise UserError(Fault("task.augment", given, "as many samples as before"))
    depends = any(getattr(leaf, "requires_grad", False) for leaf in tree_leaves(first))
    if len(theta) and not depends and not loss_takes_hyperparameters(problem.task):
        names = ", ".join(problem.loss_hyperparameters)
        text = f"the inputs that it gives do not depend on {names} (cut off by detach, item or a comparison?)"
        raise UserError(Fault("task.augment", text, "inputs that can be differentiated by h"))
