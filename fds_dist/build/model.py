"""The network that a config names, or that was handed in, as a function of a seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from fds_dist.common.batch import checked_batch, inputs_of
from fds_dist.common.faults import Fault, UserError, user_code
from fds_dist.common.registry import load_object, parameters_of
from fds_dist.config import Config
from fds_dist.models import build_model, network_of
from fds_dist.models.fine_tuning import FineTuned, WeightsFile, fine_tuned
from fds_dist.models.handed_in import KEEP, REDRAW, HandedIn, checked_start
from fds_dist.models.refusals import unwrapped
from fds_dist.models.sharded import is_sharded, unsharded
from fds_dist.tasks.base import Task

ModelBuilder = Callable[[int], nn.Module]
STAND_IN: dict[str, Any] = {"input_shape": (3, 32, 32), "classes": 10}
"""An image, in place of the samples of a task that cannot be built."""


def builder_or_none(config: Config, task: Task | None, model: nn.Module | ModelBuilder | None) -> ModelBuilder | None:
    """`model_builder`; None where there is no task, whose faults do not hide those of the network's options."""
    if task is not None:
        return model_builder(config, task, model)
    name = None if model is not None or config.model is None else config.model.name
    if config.model is not None and name is not None and ":" not in name:
        try:
            build_model(name, config.model.options, **STAND_IN, seed=0)
        except UserError as error:
            raise UserError(fault for fault in error.faults if fault.key != "model.input_shape") from error
    return None


def model_builder(config: Config, task: Task, model: nn.Module | ModelBuilder | None = None) -> ModelBuilder:
    """seed → network, tried once so that faults show before any training.

    Args:
        model: used in place of the config's `model` and the task's own.

    Raises:
        UserError: there is no model, or it cannot be built.
    """
    name, options, tuning = (
        (None, {}, {}) if config.model is None else (config.model.name, config.model.options, config.model.fine_tuning)
    )
    inputs = partial(_first_inputs, task)
    own = model if model is not None else getattr(task, "build_model", None)
    builder: ModelBuilder
    if model is None and name is not None:
        shape, classes = getattr(task, "input_shape", None), getattr(task, "classes", None)
        taken = parameters_of(load_object(name, "model.name")) if ":" in name else ()
        options = {**options, **{key: value for key, value in tuning.items() if key in taken}}
        tuning = {key: value for key, value in tuning.items() if key not in taken}
        builder = network_of(name, options, shape, classes, inputs)
    elif own is not None:
        init = options.get("init", KEEP)
        init = checked_start(init) if name is None else REDRAW if init == REDRAW else KEEP
        builder = HandedIn(_maker(own), init, inputs)
    else:
        raise UserError(Fault("model", "is missing, and this task builds none", "a model, such as {name: lenet}"))
    builder = fine_tuned(builder, tuning, options.get("init"))
    builder(0)
    return builder


def _maker(own: nn.Module | ModelBuilder) -> ModelBuilder:
    """seed → the user's module. Sharded weights are gathered here: all ranks come here alike, but not to each call."""
    if not isinstance(own, nn.Module):
        return own
    module = unwrapped(own)
    whole = unsharded(module) if is_sharded(module) else module
    return lambda seed: whole


def weights_file(builder: ModelBuilder) -> WeightsFile | None:
    """The file that the networks of `model_builder` start from, if there is one."""
    return builder.weights if isinstance(builder, FineTuned) else None


def _first_inputs(task: Task) -> Any:
    with user_code("task.train_batches", "train_batches(outer_step=0, epoch=0)"):
        return inputs_of(checked_batch(next(iter(task.train_batches(0, 0))), "train_batches"))
