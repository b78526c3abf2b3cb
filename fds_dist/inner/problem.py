"""The inner problem: everything that defines a training run but the values of its hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fds_dist.common.domain import UNBOUNDED
from fds_dist.common.flat import FlatLayout
from fds_dist.common.randomness import derive_seed
from fds_dist.inner.batches import batches_of, training_batches
from fds_dist.inner.tangent_options import TangentOptions
from fds_dist.schedule.buckets import Reading
from fds_dist.schedule.groups import base_of
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.tangents import (
    EXACT_METHODS,
    METHODS,
    Batch,
    Network,
    PointMaker,
    TrainingLoss,
    Update,
    WeightGroups,
    inner_update,
)
from fds_dist.tangents.averaging import Averaged
from fds_dist.tangents.clipping import clipping, unchanged
from fds_dist.tangents.compiled import CompiledFunction, CompiledSteps, WaySettings
from fds_dist.tangents.network import named_values
from fds_dist.tangents.optimizers import InnerOptimizer, bound, ties
from fds_dist.tasks.augment import augmentation
from fds_dist.tasks.base import Task, loss_takes_hyperparameters, validation_loss
from fds_dist.tasks.losses import OnBatch

AT_ONCE = 16
"""Tangents that a GPU, or a compiled step, takes at once where `chunk_size` is auto."""

APART = 0.01
"""Relative distance of the trial values of two neighbouring buckets that would tie."""

ALL = slice(None)
"""All columns of a vector over the weights."""


@dataclass(frozen=True)
class Problem:
    """One inner problem. Fresh weights, batches and random numbers are functions of (seed, outer step, step)."""

    task: Task
    build_model: Callable[[int], nn.Module]
    """seed → network"""
    optimizer: InnerOptimizer
    space: HyperparameterSpace
    tangents: TangentOptions
    device: torch.device
    dtype: torch.dtype = torch.float32
    clip_gradient: float | None = None
    """Bound on each element of the gradient."""
    clip_norm: float | None = None
    """Bound on the Euclidean norm of the whole gradient, after `clip_gradient`."""
    ema: float | None = None
    """The decay of the weights' moving average, which is then what is validated; None: there is no average."""
    low: torch.dtype | None = None
    """The dtype that forward passes are autocast to (`inner.precision: bf16`); None: they compute in `dtype`."""
    accumulate: int = 1
    """Micro-batches that each training batch is cut into; only one of them has a graph at a time."""
    val_batch_norm: str = "batch"
    live_buffers: tuple[str, ...] = ()
    """Names of the network's buffers that depend on the weights and reach a loss; they have tangents too."""
    untouched: tuple[str, ...] = ()
    """Names of the parameters that take no part in training: like `torch.optim`, a step leaves them alone."""
    seed: int = 0
    groups: Mapping[str, str] = field(default_factory=dict)
    """Parameter groups, name to pattern, where the space has copies of a hyperparameter for them; else empty."""

    def module(self, outer_step: int) -> nn.Module:
        """The module with fresh weights for `outer_step`, its untouched parameters frozen."""
        module = self.build_model(derive_seed(self.seed, outer_step, "weights"))
        for name in self.untouched:
            module.get_parameter(name).requires_grad_(False)
        return module

    def network(self, outer_step: int) -> Network:
        """A network with fresh weights for `outer_step`, in training mode."""
        network = Network(
            self.module(outer_step), self.dtype, self.device, self.live_buffers, self.low, self.tangents.twice
        )
        network.train()
        return network

    @cached_property
    def loss_hyperparameters(self) -> tuple[str, ...]:
        """Names of the hyperparameters that are the task's own: of its loss or its `augment`."""
        return tuple(name for name in self.space.names if base_of(name) not in self.optimizer.defaults)

    @property
    def optimizer_info(self) -> dict[str, object]:
        """What a schedule is learned for, as plain values; see `Schedule.optimizer`."""
        groups = {"groups": dict(self.groups)} if self.groups else {}
        return {"name": self.optimizer.name, **self.optimizer.switches, **groups, **self.step_settings}

    @property
    def step_settings(self) -> dict[str, object]:
        """What a step does beside the optimizer's arithmetic, by the keys of `inner`; empty by default."""
        settings: dict[str, tuple[object, object]] = {
            "clip_gradient": (self.clip_gradient, None),
            "clip_norm": (self.clip_norm, None),
            "ema": (self.ema, None),
            "accumulate": (self.accumulate, 1),
            "precision": ("bf16" if self.low else None, None),
        }
        return {name: value for name, (value, default) in settings.items() if value != default}

    def rule(self, layout: FlatLayout) -> InnerOptimizer:
        """The optimizer for weights that lie as `layout` says, and with their average where there is one."""
        optimizer = bound(self.optimizer, layout, grouped=bool(self.groups))
        return optimizer if self.ema is None else Averaged(optimizer, self.ema)

    def training_loss(self, network: Network) -> TrainingLoss:
        """The task's loss as a function of the network's flat weights."""
        names, sizes, takes = self.loss_hyperparameters, self.space.sizes, loss_takes_hyperparameters(self.task)
        bounds = self._bounds(names) if self.tangents.method == "difference" else None
        return TrainingLoss(network, self.task.loss, names, sizes, augmentation(self.task), takes, bounds)

    def _bounds(self, names: Sequence[str]) -> tuple[Tensor, Tensor] | None:
        """The least and the largest θ [P] of the hyperparameters `names`; None where there is no bound."""
        domains = {owner.name: owner.domain for owner in self.space.learned}
        numbers = [domains.get(name, UNBOUNDED) for name in names for _ in range(self.space.sizes[name])]
        if all(number == UNBOUNDED for number in numbers):
            return None
        low, high = torch.tensor(numbers, dtype=self.dtype, device=self.device).unbind(1)
        return low, high

    def loss_arguments(self, values: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], ...]:
        """What the loss gets beside output and batch: the `values` of its hyperparameters, or nothing."""
        return (values,) if values and loss_takes_hyperparameters(self.task) else ()

    @cached_property
    def reads_inputs(self) -> bool:
        """Whether `augment`, a loss or the metrics of the task read the inputs of a whole batch."""
        functions = (self.task.loss, validation_loss(self.task), getattr(self.task, "metrics", None))
        takes_batch = any(OnBatch(function).takes_batch for function in functions if function is not None)
        return takes_batch or augmentation(self.task) is not None

    def theta(self, h: Tensor) -> Tensor:
        """The part of the H numbers `h` [H] (or of rows [..., H]) that belongs to the loss [..., P]."""
        parts = [h[..., self.space.columns[name]] for name in self.loss_hyperparameters]
        return torch.cat(parts, -1) if parts else h[..., :0]

    @property
    def theta_size(self) -> int:
        """P."""
        return sum(self.space.sizes[name] for name in self.loss_hyperparameters)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """The values in `theta` [P] by name, as the loss gets them: [] each, or [size]."""
        return named_values(theta, self.loss_hyperparameters, self.space.sizes)

    def update(self, network: Network, columns: slice = ALL, total: Callable[[Tensor], Tensor] = unchanged) -> Update:
        """The inner step of the weights in `columns` of `network`'s flat vector, as a pure function of tensors.

        Args:
            total: a differentiable sum over the ranks that have the other columns.
        """
        clip = clipping(self.clip_gradient, self.clip_norm, total)
        groups = WeightGroups.of(self.groups, network.layout, columns, self.device) if self.groups else None
        places = {
            name: self.space.columns[name].start
            for name in self.space.names
            if base_of(name) in self.optimizer.defaults
        }
        return inner_update(self.rule(network.layout), places, clip, groups)

    @property
    def make_point(self) -> PointMaker:
        """The method of Hessian-vector products."""
        return METHODS[self.tangents.method]

    def by(self, method: str) -> Problem:
        """The same problem with `method` of `METHODS`; a plain step runs the network that the method before it ran."""
        twice = self.tangents.twice if method == "plain" else method in EXACT_METHODS
        compile = self.tangents.compile if method in EXACT_METHODS else "off"
        return replace(self, tangents=replace(self.tangents, method=method, twice=twice, compile=compile))

    def in_float64(self) -> Problem:
        """The same problem in float64 throughout, without a compiler, which would take longer than what it is for."""
        return replace(self.traced(), dtype=torch.float64, low=None)

    def traced(self) -> Problem:
        """The same problem; steps that would be compiled are traced."""
        way = "off" if self.tangents.compile == "off" else "trace"
        return replace(self, tangents=replace(self.tangents, compile=way))

    def uncompiled(self) -> Problem:
        """The same problem with eager steps; they take as many tangents at once as compiled ones, by their method."""
        if self.tangents.compile == "off":
            return self
        eager = self.by("jvp")
        options = replace(eager.tangents, compile="off", chunk_size=self.tangents.compiled_chunk)
        return replace(eager, tangents=options)

    @property
    def chunk_size(self) -> int:
        """Tangents per Hessian-vector product.

        On a CPU one at a time by default: a batched product's last bits depend on the number of tangents in the
        batch, and so on the number of ranks.
        """
        return self.tangents.chunk_size or (1 if self.device.type == "cpu" else AT_ONCE)

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of the weights and the optimizer's state, both whole."""
        network = self.network(0)
        tensors = tree_leaves((network.initial_weights, self.rule(network.layout).init(network.initial_weights)))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def keeps_every_state(self, horizon: int) -> bool:
        """Whether a reverse sweep keeps the state of every step, or some and computes the others a second time."""
        return horizon * self.state_bytes <= self.tangents.kept_bytes

    @cached_property
    def compiled_steps(self) -> CompiledSteps:
        """What the steps of all its inner runs are compiled to; a problem that is not this very one has its own."""
        return CompiledSteps(self._way_settings, self.tangents.compiled_chunk)

    @cached_property
    def compiled_sweep(self) -> tuple[CompiledFunction, CompiledFunction]:
        """The same of a reverse sweep: of its plain steps and of its pull-backs."""
        return CompiledFunction("plain step", self._way_settings), CompiledFunction("pull-back", self._way_settings)

    @property
    def _way_settings(self) -> WaySettings:
        options, on_gpu = self.tangents, self.device.type == "cuda"
        tf32 = on_gpu and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
        first_batch, coarse = next(self.batches(0)), tf32 or self.low is not None
        return WaySettings(options.compile, first_batch, options.cuda_graph and on_gpu, coarse)

    def numbers(self, readings: Mapping[str, Sequence[Reading]], values: Sequence[float]) -> Tensor:
        """h [H] on the CPU: what each hyperparameter is at a step with these `readings`, given λ = `values` [K]."""
        return torch.tensor(self.space.read(readings, values), dtype=self.dtype)

    @property
    def first_numbers(self) -> Tensor:
        """h [H] at the first step, with the initial λ."""
        return self.numbers(self.space.first_readings, self.space.initial()).to(self.device)

    def trial_values(self) -> list[float]:
        """λ [K] to compare derivatives at: the initial values, and a first outer step's size where one is zero.

        At lr = 0 all other hypergradients are exactly zero, and agreement would mean nothing. Equal values are told
        apart where the optimizer's update has no derivative at them.
        """
        initial = zip(self.space.elements, self.space.initial(), strict=True)
        apart = ties(self.optimizer)
        return [
            slot.owner.clamp((value or slot.owner.step) * (1 + APART * slot.bucket * (slot.owner.base in apart)))
            for slot, value in initial
        ]

    def step_seed(self, outer_step: int, step: int, part: int = 0, micro_batch: int = 0) -> int:
        """The seed of the random numbers (dropout) of one inner step on one part of one micro-batch."""
        place = ([part] if part else []) + (["micro-batch", micro_batch] if micro_batch else [])
        return derive_seed(self.seed, outer_step, step, "step", *place)

    def step_seeds(self, outer_step: int, step: int, part: int, micro_batch: int) -> tuple[int, int]:
        """`step_seed` for what all parts of a micro-batch draw alike, and for what this part draws."""
        of_all = self.step_seed(outer_step, step, 0, micro_batch)
        return of_all, of_all if part == 0 else self.step_seed(outer_step, step, part, micro_batch)

    def batches(self, outer_step: int, first_step: int = 0) -> Iterator[Batch]:
        """Training batches from inner step `first_step` on without end; see `training_batches`."""
        return training_batches(self.task, self.seed, outer_step, first_step)

    def batches_of(self, source: str, *arguments: int) -> Iterator[Batch]:
        """The batches that the task's function `source` gives for `arguments`; see `batches_of`."""
        return batches_of(self.task, self.seed, source, *arguments)
