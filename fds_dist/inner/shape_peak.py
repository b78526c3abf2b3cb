"""Peak memory of a step told by the shapes of its tensors alone, without computing their values.

A step on a large batch may take minutes, and its memory does not grow in proportion to the batch: for few samples the
vectors over the weights are the peak, for many the activations. So the step is taken with PyTorch's fake tensors, which
have shapes and no values. What reads a value, such as a branch on a loss, cannot be told so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.utils._pytree import tree_map_only

from fds_dist.common.batch import Batch
from fds_dist.common.faults import passes_others, user_line
from fds_dist.common.memory import peak_bytes
from fds_dist.distributed.exchanges import rehearsed
from fds_dist.inner.advance import advance
from fds_dist.inner.estimate import evaluate
from fds_dist.inner.horizon import zero_tangents
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState, first_of
from fds_dist.inner.training import Training

STEPS = 2
"""From the second one on, the initial weights are there beside those of the run."""


WITHOUT_VALUES = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
"""What PyTorch raises where a value is read, or a shape depends on one, or an operator does not tell shapes."""

TORCH = Path(torch.__file__).parent


def why_untold(error: Exception) -> str:
    """Why shapes alone do not tell what a step takes, from what `shape_peak` raised; "" where that is no answer.

    A user's and another library's code may raise anything where tensors have no values (`Tensor.numpy` and
    `format` raise errors of their own); what passed through this package and PyTorch alone is a fault.
    """
    if not isinstance(error, WITHOUT_VALUES) and not passes_others(error, TORCH):
        return ""
    message = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {message}{user_line(error)}"


def shape_peak(problem: Problem, tangents: int, parts: int = 1) -> int:
    """Bytes at the peak of two eager steps with so many tangents and the validation after them, state and tangents
    included.

    Args:
        parts: on the first of so many ranks of the `data` axis; see `step_peak`.

    Raises:
        Exception: whatever a network, a loss or an optimizer that reads values raises where there are none.
    """
    training = Training(InnerRun(problem, problem.trial_values(), 0, STEPS, first_of(parts, problem.device)))
    start, h = training.state, training.run.hyperparameters[0]
    state = training.network.initial_weights, start.optimizer, start.buffers
    batches, cpu = list[Batch](), torch.device("cpu")
    made = peak_bytes(lambda: batches.append(next(problem.batches(0))), cpu)  # by the task: copies or views of its data
    batches.append(next(problem.batches_of("val_batches", 0)))
    with rehearsed(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        state, h, *batches = tree_map_only(Tensor, fake.from_tensor, (state, h, *batches))
        return made + peak_bytes(lambda: _take(training, tangents, state, h, *batches), cpu, shapes=True)


def _take(training: Training, tangents: int, state: Any, h: Tensor, batch: Batch, val_batch: Batch) -> None:
    """Steps from (w, s, buffers), of which there are copies here, and the validation."""
    problem, training.state = training.problem, InnerState(0, *tree_map_only(Tensor, torch.clone, state))
    initial_weights = training.state.weights  # which the network keeps
    moving = zero_tangents(training.local_state, range(tangents), problem.live_buffers)
    directions = h.new_zeros((tangents, len(h)))
    for _step in range(STEPS):
        point = training.point(problem.theta(h), batch)
        advance(training, point, h, 1.0, moving, directions, range(tangents))
        del point
    evaluate(problem, training.network, training.judged_state, [val_batch], problem.val_batch_norm, training.axis, True)
    del initial_weights
