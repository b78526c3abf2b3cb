"""Plain PyTorch on one rank, `DistributedDataParallel` on several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fds_dist.commands.retrain.checkpoints import read_state, write_state
from fds_dist.commands.retrain.data import Term
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.common.batch import call
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.flat import trainable_parameters
from fds_dist.common.modules import Modes, averaged_model, convert
from fds_dist.common.precision import DTYPES, in_dtype
from fds_dist.distributed.errors import rank_errors
from fds_dist.distributed.mesh import Ranks
from fds_dist.schedule.schedule import Schedule
from fds_dist.tangents.optimizers.plain import PureOptimizer, make_optimizer
from fds_dist.tangents.optimizers.plain_schedule_free import PlainScheduleFree


class DDPEngine:
    """See `Engine`. Each rank holds the whole network and the whole optimizer state.

    Batch-norm on several GPUs is synchronized: its statistics are those of the whole batch. On CPUs PyTorch has no such
    layer: each rank uses the statistics of its part of the batch, and the running statistics are those of rank 0. On
    several ranks, `DistributedDataParallel` requires that every trained parameter takes part in every step.
    """

    def __init__(self, module: nn.Module, schedule: Schedule, settings: RetrainSettings, ranks: Ranks) -> None:
        self._settings, self._ranks = settings, ranks
        self._dtype = DTYPES[settings.dtype]
        self.notes = batch_norm_notes(module, ranks)
        if ranks.world_size > 1 and ranks.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module, ranks.group)
        self._module = convert(module, self._dtype, ranks.device)
        Modes(module).train()
        self._parameters = list(trainable_parameters(module).values())
        self.optimizer = make_optimizer(schedule, module)
        if settings.ema is not None and isinstance(self.optimizer, PlainScheduleFree):
            problem = f"{settings.ema:g} is an average beside the one that {self.optimizer.formula} keeps"
            raise UserError(Fault("ema", problem, "null"))
        self._averaged = None if settings.ema is None else averaged_model(self._module, settings.ema)
        self._network = self._module
        if ranks.world_size > 1:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            self._network = DistributedDataParallel(module, devices, process_group=ranks.group)

    def step(self, terms: Sequence[Term]) -> list[Tensor]:
        """See `Engine`; ranks add up their gradients in the last term alone."""
        self.optimizer.zero_grad()
        losses = []
        for term in terms:
            network = self._network
            adds_up_later = isinstance(network, DistributedDataParallel) and term is not terms[-1]
            with cast(Any, network).no_sync() if adds_up_later else nullcontext():
                term.seed()
                with self._autocast():
                    loss = term.loss_of(self._output(network, term.inputs))
                (loss * term.weight).backward()
            losses.append(loss.detach())
        if self._settings.clip_gradient is not None:
            nn.utils.clip_grad_value_(self._parameters, self._settings.clip_gradient)
        if self._settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._settings.clip_norm)
        self.optimizer.step()
        if self._averaged is not None:
            self._averaged.update_parameters(self._module)
        return losses

    def _autocast(self) -> AbstractContextManager[Any]:
        mixed = self._settings.mixed_precision == "bf16"
        return torch.autocast(self._ranks.device.type, torch.bfloat16, enabled=mixed)

    @property
    def _judged(self) -> nn.Module:
        """The network that is tested: with averaged weights, or that in training."""
        return self._module if self._averaged is None else self._averaged.module

    @property
    def averages(self) -> bool:
        """See `Engine`."""
        return self._averaged is not None or isinstance(self.optimizer, PlainScheduleFree)

    @contextmanager
    def _holding_average(self) -> Iterator[None]:
        """Inside, the trained module holds the average that its optimizer keeps, where it keeps one."""
        optimizer = self.optimizer
        if not isinstance(optimizer, PlainScheduleFree):
            yield
            return
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """See `Engine`."""
        with self._holding_average(), in_evaluation(self._judged, self._ranks):
            yield

    def predict(self, inputs: Any) -> Any:
        """See `Engine`."""
        return self._output(self._judged, inputs)

    def _output(self, network: nn.Module, inputs: Any) -> Any:
        """The output in the precision of the weights, so that the loss has it too."""
        with self._autocast():
            output = call(network, inputs)
        return in_dtype(output, self._dtype)

    def weights(self, trained: bool = False) -> dict[str, Tensor]:
        """See `Engine`."""
        if not self._ranks.is_first:
            return {}
        # Copies: the format refuses tensors that share memory, such as tied weights.
        module = self._module if trained else self._judged
        with nullcontext() if trained else self._holding_average():
            return {name: host_copy(tensor) for name, tensor in module.state_dict().items()}

    def save(self, path: Path, progress: dict[str, Any]) -> Callable[[], None]:
        """See `Engine`: rank 0 writes one file."""
        return partial(write_state, path, self._state() if self._ranks.is_first else {}, progress)

    def _state(self) -> dict[str, Tensor]:
        """Copies in host memory."""
        tensors = {f"weights/{name}": tensor for name, tensor in self.weights(trained=True).items()}
        if self._averaged is not None:
            tensors |= {f"averaged/{name}": host_copy(tensor) for name, tensor in self._averaged.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer/{index}/{name}": host_copy(value) for name, value in state.items() if value is not None
            }
        return tensors

    def load(self, path: Path, accept: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """See `Engine`: rank 0 reads the file and sends it to the others, which need not see it."""
        state = self._ranks.on_first(lambda: read_state(path))
        if state is None:
            return None
        tensors, progress = state
        accept(progress)
        try:
            self._set(tensors)
        except (RuntimeError, ValueError, KeyError, IndexError):
            problem = f"{path} belongs to another network than the one of this task and model"
            raise UserError(Fault("", problem, "restart=true, to train anew")) from None
        return progress

    def _set(self, tensors: dict[str, Tensor]) -> None:
        self._module.load_state_dict(_below("weights/", tensors))
        if self._averaged is not None:
            self._averaged.load_state_dict(_below("averaged/", tensors))
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                states.setdefault(int(index), {})[name] = tensor
        self._check(states)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})

    def _check(self, states: Mapping[int, Mapping[str, Tensor]]) -> None:
        """That each tensor is a number or has the shape of its parameter, which `load_state_dict` does not look at. A
        `PureOptimizer` has vectors over all weights."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        whole = (sum(parameter.numel() for parameter in parameters),)
        for index, state in states.items():
            shapes = {(), whole if isinstance(self.optimizer, PureOptimizer) else tuple(parameters[index].shape)}
            if wrong := [name for name, tensor in state.items() if tuple(tensor.shape) not in shapes]:
                raise ValueError(f"{wrong[0]} of parameter {index} has another shape")

    def close(self) -> None:
        """See `Engine`: there is nothing to release."""


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextmanager
def in_evaluation(module: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Inside, the module is in evaluation mode with rank 0's buffers, and records no gradients."""
    if ranks.world_size > 1:
        with rank_errors():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0, group=ranks.group)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def host_copy(tensor: Tensor) -> Tensor:
    """A copy of `tensor` in host memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def batch_norm_notes(module: nn.Module, ranks: Ranks) -> list[str]:
    """A note for the user if batch-norm does not see the whole batch."""
    has_batch_norm = any(isinstance(layer, _BatchNorm) for layer in module.modules())
    if ranks.world_size == 1 or ranks.device.type == "cuda" or not has_batch_norm:
        return []
    return [
        "batch-norm sees each rank's part of a batch: on CPUs its statistics cannot be those of the whole batch, "
        "so the result depends on the number of ranks"
    ]
