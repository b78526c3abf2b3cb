"""DeepSpeed: ZeRO stages 0 to 3, which spread optimizer state, gradients and weights over the ranks."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from fds_dist.commands.retrain.checkpoints import FILES, Written, read_state, write_state
from fds_dist.commands.retrain.data import Term
from fds_dist.commands.retrain.ddp import batch_norm_notes, host_copy, in_evaluation
from fds_dist.commands.retrain.deepspeed_settings import imported_deepspeed
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.common.batch import call
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import writing
from fds_dist.common.modules import Modes, convert
from fds_dist.common.precision import in_dtype
from fds_dist.common.records import from_values
from fds_dist.config.references import fill_in
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.library_groups import groups_of_libraries
from fds_dist.distributed.mesh import Ranks
from fds_dist.schedule.schedule import Schedule
from fds_dist.storage.checkpoints import changed_files, digests, fresh_folder, remove_folders
from fds_dist.tangents.optimizers.plain import PureOptimizer, make_optimizer
from fds_dist.tangents.optimizers.plain_schedule_free import PlainScheduleFree

LOCAL_RANK = "LOCAL_RANK"
"""The environment variable that DeepSpeed requires even of one process."""


class DeepSpeedEngine:
    """See `Engine`. The ZeRO stage decides what each rank holds; the optimizer is the schedule's, from `torch.optim`.

    Weights and optimizer state are float32; with `bf16` the network computes on a bfloat16 copy of the weights. A
    checkpoint can be resumed only by as many ranks as wrote it, and all ranks must see its folder. Batch-norm works as
    in `DDPEngine`.
    """

    def __init__(self, module: nn.Module, schedule: Schedule, settings: RetrainSettings, ranks: Ranks) -> None:
        self._ranks, self._accumulate = ranks, settings.accumulate
        self.notes = batch_norm_notes(module, ranks)
        if ranks.world_size > 1 and ranks.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        self._module = convert(module, torch.float32, ranks.device)
        Modes(module).train()
        bf16 = bool(settings.deepspeed.get("bf16", {}).get("enabled", False))
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self._tool = _ready(ranks.device)
        self.optimizer = make_optimizer(schedule, module)
        if isinstance(self.optimizer, (PureOptimizer, PlainScheduleFree)):
            problem = f"deepspeed steps flat parts of the weights, and torch.optim has no {self.optimizer.formula}"
            raise UserError(Fault("engine", problem, "engine=ddp"))
        for group in self.optimizer.param_groups:
            group.update(lr=0.0, weight_decay=0.0)  # until the driver sets them: with bf16, `initialize` takes a step
        if settings.clip_gradient is not None:
            # Every stage calls this optimizer's step, with its part of the averaged gradient.
            self.optimizer.register_step_pre_hook(_clipping(settings.clip_gradient))
        with ExitStack() as process, groups_of_libraries(ranks.environment):
            process.enter_context(_fitted_process(ranks))
            self._engine, *_ = self._tool.initialize(
                model=self._module, optimizer=self.optimizer, config=full_config(settings), dist_init_required=False
            )
            self._process = process.pop_all()
        self.optimizer.state.clear()  # from that first step, which Adam would count
        gc.collect()  # `initialize` leaves a copy of all weights in reference cycles
        if bf16 and any(isinstance(layer, _BatchNorm) for layer in self._module.modules()):
            self.notes += ["batch-norm's running statistics are bfloat16, as its weights are"]

    @property
    def averages(self) -> bool:
        """See `Engine`."""
        return False

    def step(self, terms: Sequence[Term]) -> list[Tensor]:
        """See `Engine`."""
        losses = []
        for term in terms:
            if self._accumulate > 1:  # a last batch may have fewer terms than DeepSpeed counts
                self._engine.set_gradient_accumulation_boundary(term is terms[-1])
            term.seed()
            loss = term.loss_of(self.predict(term.inputs))
            self._engine.backward(loss * (term.weight * self._accumulate))  # it divides by their number
            self._engine.step()
            losses.append(loss.detach())
        return losses

    def evaluating(self) -> AbstractContextManager[None]:
        """See `Engine`."""
        return in_evaluation(self._engine, self._ranks)

    def predict(self, inputs: Any) -> Any:
        """See `Engine`; the output is float32, so that the loss is."""
        return in_dtype(call(self._engine, in_dtype(inputs, self._dtype)), torch.float32)

    def weights(self, trained: bool = False) -> dict[str, Tensor]:
        """See `Engine`: float32, also with bf16. Only one parameter at a time is whole on a rank."""
        copies: dict[str, Tensor] = {}
        names: dict[int, str] = {}
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            known = names.setdefault(id(tensor), name)
            if known == name:
                with self._gathered(tensor) as whole:
                    if self._ranks.is_first:
                        copies[name] = host_copy(whole.float() if whole.is_floating_point() else whole)
            elif self._ranks.is_first:
                copies[name] = copies[known].clone()  # the format refuses tensors that share memory
        return copies

    @contextmanager
    def _gathered(self, tensor: Tensor) -> Iterator[Tensor]:
        """Inside, the whole weight in the optimizer's precision, or the buffer."""
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad and (master := self._master(tensor)) is not None:
            yield master.view(getattr(tensor, "ds_shape", tensor.shape))
        elif hasattr(tensor, "ds_id"):
            with self._tool.zero.GatheredParameters([tensor]):
                yield tensor
        else:
            yield tensor

    def _master(self, parameter: nn.Parameter) -> Tensor | None:
        """The optimizer's whole copy of a trained weight; None if it has no copy."""
        if hasattr(self._engine.optimizer, "fp32_groups"):  # bf16 without ZeRO
            groups = self._engine.optimizer
            pairs = zip(chain(*groups.fp16_groups), chain(*groups.fp32_groups), strict=True)
            return next(master for low, master in pairs if low is parameter)
        return importlib.import_module("deepspeed.utils").safe_get_full_fp32_param(parameter)

    def save(self, path: Path, progress: dict[str, Any]) -> Callable[[], None]:
        """See `Engine`: DeepSpeed's files in a fresh folder beside `path`, which names them with their checksums.
        DeepSpeed writes them at once, since its ranks meet while they write."""
        folder = self._ranks.on_first(lambda: fresh_folder(path.parent, FILES))

        def write() -> None:
            with writing(folder):
                self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)

        self._ranks.on_each(write)
        written = Written(folder.name, self._ranks.world_size, digests(folder, self._ranks))

        def name_them() -> None:
            write_state(path, {}, {**progress, FILES: asdict(written)})
            remove_folders(path.parent, FILES, [folder])

        return name_them

    def load(self, path: Path, accept: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """See `Engine`."""
        state = self._ranks.on_first(lambda: read_state(path))
        if state is None:
            return None
        _, progress = state
        accept(progress)
        try:
            written = from_values(Written, progress.pop(FILES, None))
        except ValueError as error:
            raise UserError(Fault("", f"{path} is damaged ({FILES}: {error})", "restart=true, to train anew")) from None
        if written.world_size != self._ranks.world_size:
            problem = f"{path} was written by {written.world_size} ranks, and there are {self._ranks.world_size} now"
            raise UserError(Fault("", problem, "as many ranks with engine=deepspeed, or restart=true to train anew"))
        folder = path.parent / written.folder
        changed = changed_files(folder, written.files, self._ranks)
        if changed:
            problem = f"{folder} is damaged ({', '.join(changed)})"
            raise UserError(Fault("", problem, "restart=true, to train anew"))
        try:
            self._engine.load_checkpoint(str(folder.parent), tag=folder.name, load_lr_scheduler_states=False)
        except (RuntimeError, ValueError, KeyError, AssertionError):
            problem = f"{folder} belongs to another network than the one of this task and model"
            raise UserError(Fault("", problem, "restart=true, to train anew")) from None
        return progress

    def close(self) -> None:
        """See `Engine`."""
        self._engine.destroy()
        self._process.close()


@contextmanager
def _fitted_process(ranks: Ranks) -> Iterator[None]:
    """What DeepSpeed requires of the process; in the end the process is as it was."""
    linear, has_local_rank = nn.functional.linear, LOCAL_RANK in os.environ
    made_group = _join_alone(ranks)
    os.environ.setdefault(LOCAL_RANK, str(read_environment().local_rank))
    try:
        yield
    finally:
        # With ZeRO 3 DeepSpeed replaces this function in the whole process, by one without forward-mode derivatives.
        nn.functional.linear = linear
        if not has_local_rank:  # other libraries would take the process for one that a launcher started
            os.environ.pop(LOCAL_RANK, None)
        # DeepSpeed keeps process groups in module variables, and would reuse them beside the next process group.
        forget = getattr(importlib.import_module("deepspeed.utils.groups"), "_release_process_group_references", None)
        if forget is not None:
            forget()
        if made_group:
            dist.destroy_process_group()


def _ready(device: torch.device) -> Any:
    """The library, set to compute on this rank's device."""
    tool = imported_deepspeed()
    accelerator = importlib.import_module("deepspeed.accelerator")
    if device.type == "cpu" and accelerator.get_accelerator().device_name() != "cpu":
        accelerator.set_accelerator(importlib.import_module("deepspeed.accelerator.cpu_accelerator").CPU_Accelerator())
    return tool


def full_config(settings: RetrainSettings) -> dict[str, Any]:
    """The user's section, completed by the keys that follow from the other settings."""
    section = fill_in(settings.deepspeed)
    if section.get("bf16", {}).get("enabled"):
        # Otherwise it skips a step whose gradient is not finite, and the schedule would be one step ahead.
        section["bf16"] = {"check_grad_overflow": False, **section["bf16"]}
        # Otherwise buffers stay float32, which batch-norm and most bfloat16 operators refuse.
        section["data_types"] = {"buffer_dtype": "bf16", **section.get("data_types", {})}
    return {
        "log_level": "error",  # it warns about every optimizer of another library
        **section,
        "train_micro_batch_size_per_gpu": 1,  # it sees single batches, and needs this only for its statistics
        "gradient_accumulation_steps": settings.accumulate,
        "gradient_clipping": settings.clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _clipping(bound: float) -> Callable[..., None]:
    """A hook before an optimizer's step that clips its gradients elementwise."""

    def clip(optimizer: Optimizer, *arguments: object) -> None:
        for group in optimizer.param_groups:
            nn.utils.clip_grad_value_(group["params"], bound)

    return clip


def _join_alone(ranks: Ranks) -> bool:
    """Makes the process group that DeepSpeed requires even for one process; returns whether it made one."""
    if ranks.world_size > 1 or dist.is_initialized():
        return False
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return True
