"""What the ranks of a retraining must have alike, as facts that they compare before they train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fds_dist.commands.meeting import config_facts
from fds_dist.commands.retrain.data import RetrainData
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.common.flat import trainable_parameters
from fds_dist.config import Config
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.inner.run_facts import batch_text
from fds_dist.tasks.base import Task


def setting_facts(config: Config, settings: RetrainSettings) -> dict[str, Any]:
    """The settings and the config of the run; the schedule is that of rank 0 on all of them."""
    return {**settings.resolved(), "config of the run": config_facts(config)}


def data_facts(
    task: Task,
    build_model: Callable[[int], nn.Module],
    settings: RetrainSettings,
    device: torch.device,
    environment: LaunchEnvironment,
) -> dict[str, Any]:
    """The device, the first batches and the parameters; nothing where there is one rank.

    Not the weights: the engines give all ranks those of rank 0.

    Raises:
        UserError: the task gives no usable data.
    """
    if not environment.distributed:
        return {}
    cpu = torch.device("cpu")  # on a GPU the data would stay in its memory
    data = RetrainData(task, cpu, settings.seed, settings.hold_out)
    parameters = trainable_parameters(build_model(settings.seed))
    held_out = {"task.val_batches": batch_text(next(data.validation()), cpu)} if data.held_out else {}
    return {
        "device": device.type,
        "task.steps_per_epoch": data.steps_per_epoch,
        "task.train_batches": batch_text(next(data.training(0, 1)), cpu),
        "task.test_batches": batch_text(next(data.testing()), cpu),
        **held_out,
        "model.parameters": {name: str(list(parameter.shape)) for name, parameter in parameters.items()},
    }
