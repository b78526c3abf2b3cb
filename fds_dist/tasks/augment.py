"""A task's `augment`: training inputs changed at random, with a strength that may be learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fds_dist.common.batch import tensors_in
from fds_dist.common.randomness import derive_seed
from fds_dist.tasks.base import Task
from fds_dist.tasks.losses import binds, signature_of

Augment = Callable[[Any, torch.Generator, Mapping[str, Tensor]], Any]
"""See `Task`."""


def takes_values(augment: Callable[..., Any]) -> bool:
    """Whether a function takes `(inputs, generator, h)`; one of `(inputs, generator)` is for the data, not the step."""
    signature = signature_of(augment)
    return signature is not None and binds(signature, *range(3))


def augmentation(task: Task) -> Augment | None:
    """The task's `augment`, or None."""
    return getattr(task, "augment", None)


def augmented(augment: Augment, inputs: Any, seed: int, values: Mapping[str, Tensor]) -> Any:
    """`augment` of the inputs of a whole batch, [B, ...] each.

    Args:
        seed: of the step. The generator is on the device of the inputs and starts anew at each call: all passes over a
            step, and all ranks, see the same numbers. They are not those that the network draws (dropout).
        values: of the hyperparameters that are not the optimizer's, by name.
    """
    device = next((tensor.device for tensor in tensors_in(inputs)), "cpu")
    return augment(inputs, torch.Generator(device).manual_seed(derive_seed(seed, "augment")), values)
