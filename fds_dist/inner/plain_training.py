"""The user's own training in plain PyTorch: the module as it was built, `loss.backward()` and `torch.optim`.

It shares nothing with the engine but the task, the seeds and the schedule's driver, and so bears witness against it.

Shapes: D = trained weights, K = learned numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fds_dist.common.batch import (
    Batch,
    call,
    common_rows,
    first_samples,
    inputs_of,
    map_tensors,
    samples_in,
    take_rows,
)
from fds_dist.common.flat import FlatLayout, trainable_parameters
from fds_dist.common.modules import Modes, averaged_model, convert, independent_copy
from fds_dist.common.precision import default_dtype, in_dtype
from fds_dist.common.randomness import random_state, seed_generators
from fds_dist.common.timing import seconds_of
from fds_dist.common.values import Value
from fds_dist.inner.culprits import Call, calls_within
from fds_dist.inner.problem import Problem
from fds_dist.schedule.driver import parameter_groups
from fds_dist.tangents.optimizers.plain import torch_optimizer
from fds_dist.tangents.optimizers.plain_schedule_free import PlainScheduleFree
from fds_dist.tasks.augment import augmentation, augmented
from fds_dist.tasks.base import Task, validation_loss
from fds_dist.tasks.losses import OnBatch

EXPLOSION = 1e6
"""How often the first loss; no training that succeeds passes there."""


@dataclass
class PlainRun:
    """What plain PyTorch saw over a few steps."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor | None]] = field(default_factory=list)
    """Per step, by parameter; None where a parameter took no part."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """After the last step, by parameter."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """After the last step."""
    val_loss: float = 0.0
    """Of one batch, after the last step."""

    @property
    def explodes(self) -> bool:
        """Whether a loss is not finite or has grown beyond `EXPLOSION`: rounding alone then makes other numbers."""
        losses = [*self.losses, self.val_loss]
        most = EXPLOSION * max(1.0, abs(self.losses[0]))
        return not all(math.isfinite(loss) and abs(loss) <= most for loss in losses)

    @property
    def untouched(self) -> tuple[str, ...]:
        """Parameters that took no part in any step, which `torch.optim` therefore leaves alone."""
        return tuple(name for name in self.weights if all(gradients[name] is None for gradients in self.gradients))


@dataclass(frozen=True)
class PlainTraining:
    """The inner problem in plain PyTorch, on given batches."""

    problem: Problem
    train: Sequence[Batch]
    """One batch per step."""
    val: Batch
    build_once: bool = False
    """Whether modules are copies of one, where building one takes long; else each is built anew, as a run's is."""

    def module(self) -> nn.Module:
        """A new module with the initial weights of outer step 0, in training mode."""
        module = independent_copy(self._original) if self.build_once else self.problem.module(0)
        module = convert(module, self.problem.dtype, self.problem.device)
        Modes(module).train()
        return module

    @cached_property
    def _original(self) -> nn.Module:
        return self.problem.module(0)

    def run(self, values: Sequence[float]) -> PlainRun:
        """Trains for a step per batch with λ = `values` [K], then validates."""
        problem, horizon, seen = self.problem, len(self.train), PlainRun()
        module = self.module()
        schedule = problem.space.schedule(values, horizon, problem.optimizer_info)
        optimizer = torch_optimizer(problem.optimizer, module, parameter_groups(module, schedule))
        averaged = None if problem.ema is None else averaged_model(module, problem.ema)
        driver = schedule.attach(optimizer, horizon=horizon, fixed=True)
        for step, batch in enumerate(self.train):
            optimizer.zero_grad()
            extra = {name: driver.values[name] for name in problem.loss_hyperparameters}
            losses = []
            for index, (part, fraction) in enumerate(_parts(batch, problem.accumulate)):
                loss = self.loss(module, part, extra, problem.step_seed(0, step, micro_batch=index)) * fraction
                loss.backward()
                losses.append(loss.item())
            parameters = trainable_parameters(module)
            seen.gradients.append({name: _copy(parameter.grad) for name, parameter in parameters.items()})
            seen.losses.append(sum(losses))
            if problem.clip_gradient is not None:
                nn.utils.clip_grad_value_(module.parameters(), problem.clip_gradient)
            if problem.clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), problem.clip_norm)
            with default_dtype(problem.dtype):  # in which torch.optim keeps single numbers, such as NAdam's product
                optimizer.step()
            if averaged is not None:
                averaged.update_parameters(module)
            driver.step()
        seen.weights = {name: parameter.detach().clone() for name, parameter in trainable_parameters(module).items()}
        seen.buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        if isinstance(optimizer, PlainScheduleFree):
            optimizer.eval()
        seen.val_loss = self.val_loss(module if averaged is None else averaged.module)
        return seen

    def theta(self) -> dict[str, Value]:
        """The initial values of the loss's own hyperparameters."""
        schedule = self.problem.space.schedule(self.problem.space.initial(), 1)
        return {name: schedule.at(0)[name] for name in self.problem.loss_hyperparameters}

    def loss(self, module: nn.Module, batch: Batch, extra: Mapping[str, Value | Tensor], seed: int) -> Tensor:
        """The training loss of `batch`; `extra` are the hyperparameters of the loss."""
        problem = self.problem
        seed_generators(seed, problem.device)
        batch = self.cast(batch)
        values = {name: torch.as_tensor(value, dtype=problem.dtype) for name, value in extra.items()}
        loss_of, augment, inputs = OnBatch(problem.task.loss), augmentation(problem.task), inputs_of(batch)
        if augment is not None:
            inputs = augmented(augment, inputs, seed, values)
        with self.autocast():
            return loss_of(self.output(module, inputs), batch, *problem.loss_arguments(values))

    def autocast(self) -> AbstractContextManager[Any]:
        """PyTorch's own, where the problem has a precision for it."""
        low = self.problem.low
        return nullcontext() if low is None else torch.autocast(self.problem.device.type, low)

    def output(self, module: nn.Module, inputs: Any) -> Any:
        """The network's output, which losses get in the dtype of the weights."""
        output = call(module, inputs)
        return output if self.problem.low is None else in_dtype(output, self.problem.dtype)

    @torch.no_grad()
    def val_loss(self, module: nn.Module) -> float:
        """As a user would compute it in the configured batch-norm mode."""
        Modes(module).evaluate(self.problem.val_batch_norm)
        for layer in module.modules():
            if isinstance(layer, _BatchNorm) and layer.training:
                layer.momentum = 0.0  # uses the batch's statistics, and leaves the running ones alone
        batch = self.cast(self.val)
        with self.autocast():
            return OnBatch(validation_loss(self.problem.task))(self.output(module, inputs_of(batch)), batch).item()

    def draws_random_numbers(self) -> bool:
        """Whether the forward pass draws from PyTorch's generators."""
        module, device = self.module(), self.problem.device
        with torch.no_grad():
            seed_generators(0, self.problem.device)
            before = random_state(device)
            call(module, inputs_of(self.cast(self.train[0])))
        return not torch.equal(before, random_state(device))

    def seconds_on(self, whole: Batch) -> float:
        """How long a plain step on the batch `whole` would take, from one on the first batch here."""
        module, batch = self.module(), self.train[0]
        share = samples_in(whole) / samples_in(batch)
        seed, theta = self.problem.step_seed(0, 0), self.theta()
        return share * seconds_of(lambda: self.loss(module, batch, theta, seed).backward(), self.problem.device)

    def gradient_at(self, layout: FlatLayout, weights: Tensor, theta: Tensor) -> Tensor:
        """∇L [D] of the first batch at `weights` [D], and at the loss's own hyperparameters `theta` [P]."""
        module = self.module()
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, view in layout.views(weights).items():
                parameters[name].copy_(view)
        loss = self.loss(module, self.train[0], self.problem.named(theta), seed=0)
        trained = [parameters[name] for name in layout.names]
        parts = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        return torch.cat([part.detach().flatten() for part in parts])

    def calls(self) -> list[Call]:
        """The calls of modules in one forward pass on the first batch."""
        module, inputs = self.module(), inputs_of(self.cast(self.train[0]))

        def run() -> None:
            seed_generators(0, self.problem.device)
            with self.autocast():
                call(module, inputs)

        return calls_within(module, run)

    def cast(self, batch: Batch) -> Batch:
        """The batch on the problem's device, in its dtype where it is floating-point."""

        def cast(tensor: Tensor) -> Tensor:
            dtype = self.problem.dtype if tensor.is_floating_point() else tensor.dtype
            return tensor.to(device=self.problem.device, dtype=dtype)

        return map_tensors(cast, batch)


class FixedBatches:
    """A task with these batches in every epoch and every outer step."""

    def __init__(self, task: Task, train: Sequence[Batch], val: Batch) -> None:
        self._task, self._train, self._val = task, train, val
        self.steps_per_epoch = len(train)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def train_batches(self, outer_step: int, epoch: int) -> Iterable[Batch]:
        """See `Task`."""
        return self._train

    def val_batches(self, outer_step: int) -> Iterable[Batch]:
        """See `Task`."""
        return [self._val]


def first_steps(problem: Problem, steps: int, samples: int | None = None, build_once: bool = False) -> PlainTraining:
    """Plain training on the first batches of outer step 0, each cut to `samples`; validation on as many samples."""
    train = list(islice(problem.batches(0), steps))
    samples = samples_in(train[0]) if samples is None else samples
    val = next(problem.batches_of("val_batches", 0))
    cut = [first_samples(batch, samples) for batch in train]
    return PlainTraining(problem, cut, first_samples(val, samples), build_once)


def _parts(batch: Batch, count: int) -> list[tuple[Batch, float]]:
    """`batch` cut for gradient accumulation, each part with its share of the samples."""
    rows = common_rows(batch)
    if count == 1 or rows is None:
        return [(batch, 1.0)]
    places = torch.arange(rows).tensor_split(min(count, rows))
    return [(take_rows(batch, slice(int(own[0]), int(own[-1]) + 1)), len(own) / rows) for own in places]


def _copy(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.detach().clone()
