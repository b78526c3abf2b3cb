"""Next-byte prediction on any text file.

Shapes: N = windows, T = bytes of a window.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Count, OpenFraction, Seed, expanded, fault, read_by, wrong_kind
from fds_dist.common.options import checked
from fds_dist.common.paths import expand_path
from fds_dist.tasks.in_memory import TensorTask

BYTES = 256
TEST_SHARE = 0.1
"""Of the windows, at the end of the file."""


def _readable(path: Any) -> str:
    expected = "the path of a text file"
    if not isinstance(path, str):
        raise fault(wrong_kind(path), expected)
    if not Path(expanded(path)).is_file():
        raise fault(f"{path} is not a file", expected)
    return path


@checked("task")
def text(
    path: Annotated[str, read_by(_readable)],
    *,
    seed: Seed = 0,
    context: Count = 128,
    batch_size: Count = 32,
    val_fraction: OpenFraction = 0.1,
) -> TensorTask:
    """Windows of ``context`` bytes of the file at ``path``, the target of each byte being the next one; 256 classes.

    The file is cut into windows that do not overlap. The last tenth of them is for testing; of the others each outer
    step draws a share of ``val_fraction`` for validation, and the rest is for training. The loss is the mean
    cross-entropy of a byte in nats, the accuracy the share of bytes that are predicted.

    Raises `UserError` where there is no such file, where it is too short, and for each option out of range.
    """
    content = torch.from_numpy(np.fromfile(expand_path(path, "task.path"), dtype=np.uint8))
    windows = (len(content) - 1) // context
    if windows < 2 * batch_size + 2:
        needed = (2 * batch_size + 2) * context + 1
        problem = f"{path} has {len(content):,} bytes, {max(windows, 0)} windows of {context}"
        raise UserError(Fault("task.path", problem, f"a file of at least {needed:,} bytes, or a smaller context"))
    # Bytes stay bytes in memory; network and loss turn a batch of them into indices.
    inputs, targets = (content[first : first + windows * context].reshape(windows, context) for first in (0, 1))
    rest = windows - max(1, round(TEST_SHARE * windows))
    task = TensorTask(
        inputs[:rest],
        targets[:rest],
        inputs[rest:],
        targets[rest:],
        batch_size=batch_size,
        val_fraction=val_fraction,
        val_batch_size=batch_size,
        seed=seed,
        loss=token_cross_entropy,
        metrics=token_accuracy,
    )
    task.classes = BYTES
    return task


def token_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean over all tokens of the cross-entropy of ``output`` [B, T, classes] and ``target`` [B, T]."""
    return F.cross_entropy(output.flatten(0, -2), target.long().flatten())


def token_accuracy(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    """The share of the tokens `target` [B, T] that are the likeliest by ``output`` [B, T, classes]."""
    return {"accuracy": (output.argmax(-1) == target).double().mean()}
