"""A network as a function of its flat weights and its buffers, and its training loss, to be differentiated.

Shapes: D = number of weights, P = numbers of the hyperparameters inside the loss, B = batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fds_dist.common.batch import WHOLE, Batch, Part, Share, call, inputs_of, map_tensors
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.flat import FlatLayout, trainable_parameters
from fds_dist.common.modules import Modes, convert
from fds_dist.common.precision import in_dtype
from fds_dist.common.randomness import seed_generators
from fds_dist.common.transfer import to_device
from fds_dist.tangents.autocast import autocast
from fds_dist.tangents.running_statistics import RunningStatistics
from fds_dist.tangents.second_derivatives import write_out
from fds_dist.tasks.augment import Augment, augmented
from fds_dist.tasks.losses import OnBatch

Buffers = dict[str, Tensor]
"""A module's buffers, by qualified name."""


class Network:
    """A module called with flat weights [D] and buffers. It owns the module, which holds those of the last call.

    Buffers are state of the run like the weights: a call gets them and returns what they have become, and leaves those
    that it got as they are. The views of the weights stay in place after a call, unlike with
    `torch.func.functional_call`: activation checkpointing runs parts of the forward pass again during the backward
    pass, and would silently do so with other weights.

    Args:
        live: names of the buffers through which derivatives pass; the others are constants of a step.
        low: the dtype that forward passes are autocast to; None: they are not. Weights and outputs have `dtype`.
        twice: whether the network will be differentiated twice: attention and recurrent layers then run on kernels
            with a second derivative, and `write_out` replaces layers. Else the network runs as it was built.
    """

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
        live: tuple[str, ...] = (),
        low: torch.dtype | None = None,
        twice: bool = True,
    ) -> None:
        self.module, self._modes = convert(module, dtype, device), Modes(module)
        self.dtype, self.device, self.live, self.twice = dtype, device, live, twice
        self.low, self.last_seed = low, 0
        parameters = trainable_parameters(module)
        self.layout = FlatLayout.of(parameters)
        self.initial_weights = self.layout.flatten(parameters, dtype, device)
        if twice:
            write_out(module)
        buffers = dict(module.named_buffers())
        self.initial_buffers: Buffers = {name: buffer.detach().clone() for name, buffer in buffers.items()}
        self._statistics = RunningStatistics(module)
        self._statistics.differentiable, self._statistics.twice = bool(live), twice
        self._weight_slots = _slots(module, "_parameters", parameters)
        self._buffer_slots = _slots(module, "_buffers", buffers)
        tracked = set(map(id, self._statistics.modules))
        self._replaced = {name for owner, _, name in self._buffer_slots if id(owner) in tracked}
        self._recurrent = [owner for owner in module.modules() if isinstance(owner, nn.RNNBase)]

    def _install(self, weights: Tensor, buffers: Buffers) -> None:
        views = self.layout.views(weights)
        for owner, local_name, name in self._weight_slots:
            owner._parameters[local_name] = views[name]  # type: ignore[assignment]
        # Running statistics are replaced, never written to; what else a module does with its buffers meets copies.
        copies = {name: buffer if name in self._replaced else buffer.clone() for name, buffer in buffers.items()}
        for owner, local_name, name in self._buffer_slots:
            owner._buffers[local_name] = copies[name]
        for owner in self._recurrent:  # these keep a second list of their weights
            owner._flat_weights = [getattr(owner, name) for name in owner._flat_weights_names]

    def train(self) -> None:
        """Training mode: dropout on, batch-norm on batch statistics, but for parts handed in at rest (see `Modes`)."""
        self._modes.train()
        self._statistics.frozen = False

    def evaluate(self, batch_norm: str = "running") -> None:
        """Evaluation mode; with `batch_norm="batch"` batch-norm still uses the statistics of its batch."""
        self._modes.evaluate(batch_norm)
        self._statistics.frozen = True

    def __call__(self, weights: Tensor, buffers: Buffers, inputs: Any, share: Share = WHOLE) -> tuple[Any, Buffers]:
        """The outputs of the whole batch at `weights` [D], and the buffers after the call.

        Args:
            inputs: of this process's part of the batch, [b, ...] each; see `call` for how the module gets them.
            share: how that part belongs to the whole.
        """
        self._install(weights, buffers)
        self._statistics.share = share
        with (
            self._twice_differentiable(),
            self.autocast(),
            _WithoutOut() if self.live and self.twice else nullcontext(),
        ):
            output = call(self.module, inputs)
        if self.low is not None:
            output = in_dtype(output, self.dtype)
        after = {name: owner._buffers[local_name] for owner, local_name, name in self._buffer_slots}
        if share.gather is not None:
            output = map_tensors(share.gather, output)
        return output, after  # type: ignore[return-value]

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast of forward passes. A loss is computed within, too, from outputs in the weights' dtype."""
        return autocast(self.device, self.low)

    @contextmanager
    def _twice_differentiable(self) -> Iterator[None]:
        """Inside, attention takes the math kernel and recurrent layers PyTorch's own cells, where the network will be
        differentiated twice: the fused attention kernels and cuDNN's recurrent ones have no second derivative."""
        if not self.twice:
            yield
            return
        native = bool(self._recurrent) and self.device.type == "cuda"
        before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = before and not native
        try:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.cudnn.enabled = before

    def differentiate(self, outputs: Any, inputs: Any, directions: Any = None, **options: Any) -> tuple[Tensor, ...]:
        """`torch.autograd.grad` of what a call gave, on the kernels of that forward pass.

        Activation checkpointing runs parts of the forward pass again in here, and must meet the same kernels.
        """
        with self._twice_differentiable():
            return torch.autograd.grad(outputs, inputs, directions, **options)

    def seed(self, seed: int) -> None:
        """Seeds the generators that the forward pass draws from (dropout)."""
        self.last_seed = seed
        seed_generators(seed, self.device)

    def cast(self, part: Part) -> Part:
        """The part with its batch on this network's device, floating-point tensors in its dtype."""
        return replace(part, batch=map_tensors(self._cast, part.batch))

    def _cast(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)

    def averaged(self, buffers: Buffers, add: Callable[[Tensor], Tensor], parts: int) -> Buffers:
        """`buffers` with the running statistics averaged over `parts` networks, which saw different parts of batches.

        `add` sums a tensor over them. Where batch-norm is over whole batches they are the same already.
        """
        if parts == 1:
            return buffers
        averages = {name for name in self._replaced if buffers[name].is_floating_point()}
        return {name: add(buffer) / parts if name in averages else buffer for name, buffer in buffers.items()}


class _WithoutOut(TorchFunctionMode):
    """Computes results and copies them into `out=`, which has no forward-mode derivative (spectral norm uses it)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        out = kwargs.pop("out", None)
        result = func(*args, **kwargs)
        return result if out is None else out.copy_(result)


def _slots(module: nn.Module, kind: str, tensors: dict[str, Any]) -> list[tuple[nn.Module, str, str]]:
    """Where each of `tensors` (by qualified name) is held, a shared one often: (owner, its name there, that name)."""
    names = {id(tensor): name for name, tensor in tensors.items()}
    return [
        (owner, local_name, names[id(tensor)])
        for owner in module.modules()
        for local_name, tensor in getattr(owner, kind).items()
        if id(tensor) in names
    ]


def named_values(theta: Tensor, names: Sequence[str], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The values in θ [P] by name: [size] where `sizes` has more than one for it, else []."""
    counts = [sizes.get(name, 1) for name in names]
    if not counts:
        return {}
    parts = dict(zip(names, theta.split(counts), strict=True))
    return {name: part if count > 1 else part[0] for (name, part), count in zip(parts.items(), counts, strict=True)}


@dataclass(frozen=True)
class TrainingLoss:
    """L(w, θ; buffers, batch), with θ [P] the hyperparameters that live inside the loss, named by `names`."""

    network: Network
    loss: Callable[..., Tensor]
    """See `Task`."""
    names: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Of the hyperparameters that are vectors: how many numbers of θ each takes; any other takes one."""
    augment: Augment | None = None
    """See `Task`: training inputs as a function of θ too."""
    takes_values: bool = True
    """Whether the loss itself gets the hyperparameters."""
    bounds: tuple[Tensor, Tensor] | None = None
    """The least and the largest θ [P] that the loss is meant for; None: any."""

    @cached_property
    def _on_batch(self) -> OnBatch:
        return OnBatch(self.loss)

    def reads(self, batch: Batch) -> Any:
        """What the loss gets of a batch beside the network's output."""
        return self._on_batch.reads(batch)

    def _inputs(self, part: Part, theta: Tensor) -> Any:
        """Those of the part, which `augment` has changed as it changes the whole batch's."""
        if self.augment is None:
            return part.inputs
        values = named_values(theta, self.names, self.sizes)
        return part.own(augmented(self.augment, inputs_of(part.batch), part.seed, values))

    def __call__(
        self,
        weights: Tensor,
        theta: Tensor,
        buffers: Buffers,
        part: Part,
        batch: Batch | None = None,
        own_theta: Tensor | None = None,
    ) -> tuple[Tensor, Buffers]:
        """The scalar loss of the whole batch that `part` belongs to, and the buffers after the forward pass.

        Where batches are split every process has the same loss; derivatives of the parts add up to that of the whole.

        Args:
            batch: what the loss gets in place of the part's batch; the network sees the part.
            own_theta: θ for what is done to this part alone (`augment`), where its adjoint is another than that of θ in
                the loss, which is of the whole batch; None: θ.

        Raises:
            UserError: the task's loss did not return one number.
        """
        inputs = self._inputs(part, theta if own_theta is None else own_theta)
        output, after = self.network(weights, buffers, inputs, part.share)
        extra = (named_values(theta, self.names, self.sizes),) if self.names and self.takes_values else ()
        with self.network.autocast():
            loss = self._on_batch(output, part.batch if batch is None else batch, *extra)
        if not isinstance(loss, Tensor) or loss.shape != ():
            kind = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            problem = f"loss(output, target) returned {kind}"
            raise UserError(Fault("task", problem, "a scalar tensor, the mean over the batch"))
        return loss, after
