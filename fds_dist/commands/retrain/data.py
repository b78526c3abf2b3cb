"""The batches of a retraining, and each rank's part of them.

Shapes: B = samples of a batch, W = ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.common.batch import Batch, checked_batch, common_rows, inputs_of, map_tensors, samples_in, take_rows
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.randomness import keyed
from fds_dist.common.transfer import to_device
from fds_dist.distributed.mesh import Ranks
from fds_dist.tasks.base import Task


class RetrainData:
    """All training data of `task` and its test data, on `device`.

    Trains on `retrain_batches` where the task has them, else and with `hold_out` on `train_batches(0, ·)`, which leave
    out the validation part, by which then the best weights are chosen: `val_batches(0)`. Tests on `test_batches()`, or
    `val_batches(0)` where there are none. `notes` name the second choices.

    Raises:
        UserError: there are neither test nor validation batches, or `hold_out` cannot hold validation data out.
    """

    def __init__(self, task: Task, device: torch.device, seed: int = 0, hold_out: bool = False) -> None:
        self.task: Any = task
        self._seed = seed
        if (move := getattr(task, "to", None)) is not None:
            move(device)
        self._has_all_data = getattr(task, "retrain_batches", None) is not None
        self.on_all_data = self._has_all_data and not hold_out
        self.steps_per_epoch: int = self.task.retrain_steps_per_epoch if self.on_all_data else task.steps_per_epoch
        self.has_test = next(iter(task.test_batches()), None) is not None
        if not self.has_test and next(iter(task.val_batches(0)), None) is None:
            raise UserError(Fault("task.test_batches", "there are neither test nor validation batches", "at least one"))
        self._overlaps = bool(getattr(task, "val_overlap", False))
        self.held_out = not (self.on_all_data or self._overlaps) and next(self.validation(), None) is not None
        if hold_out and not self.held_out:
            reason = (
                "task.val_overlap trains on the validation part" if self._overlaps else "there is no validation data"
            )
            raise UserError(Fault("hold_out", f"true holds nothing out, because {reason}", "false"))

    @property
    def notes(self) -> list[str]:
        """Notes for the user on the data."""
        notes = []
        if not self.on_all_data:
            reason = "hold_out=true" if self._has_all_data else "the task has no retrain_batches"
            notes.append(f"{reason}: trained on train_batches, without the validation part")
        if not self.has_test:
            seen = " They may be part of what is trained on." if self.on_all_data else ""
            seen = " The best weights are chosen by them, too." if self.held_out else seen
            notes.append(f"the task has no test data: tested on val_batches(0).{seen}")
        if not self.held_out:
            way_out = " (hold_out=true chooses the best)" if self.on_all_data and not self._overlaps else ""
            notes.append(f"no validation data is held out: the last weights are kept{way_out}")
        return notes

    def horizon(self, settings: RetrainSettings) -> int:
        """Optimizer steps in all, at least 1."""
        return settings.steps or max(1, round((settings.epochs or 1.0) * self.steps_per_epoch))

    def training(self, epoch: int, steps: int) -> Iterator[Batch]:
        """The first `steps` batches of an epoch.

        Raises:
            UserError: there are fewer, or one is no batch.
        """
        source = "retrain_batches" if self.on_all_data else "train_batches"
        arguments = (epoch,) if self.on_all_data else (0, epoch)
        count = 0
        for batch in islice(self._batches(source, *arguments), steps):
            count += 1
            yield batch
        if count < steps:
            problem = f"{source} gave {count} batches in epoch {epoch}"
            raise UserError(Fault("task", problem, f"{self.steps_per_epoch}, the number that the task states"))

    def testing(self) -> Iterator[Batch]:
        """Every test batch."""
        return self._batches("test_batches") if self.has_test else self.validation()

    def validation(self) -> Iterator[Batch]:
        """Every validation batch."""
        return self._batches("val_batches", 0)

    def _batches(self, source: str, *arguments: int) -> Iterator[Batch]:
        """What the task draws from global generators depends on the seed and the arguments alone."""
        batches = keyed(lambda: getattr(self.task, source)(*arguments), self._seed, source, *arguments)
        return (checked_batch(batch, source) for batch in batches)


@dataclass(frozen=True)
class Part:
    """One rank's part of a batch."""

    batch: Batch
    """Its samples alone."""
    samples: int
    """n ≤ B/W rounded up. A rank that gets none (B < W) computes on one sample, which must not count."""
    weight: float
    """W·n/B: what to multiply the part's mean loss by, so that the mean over ranks is the mean over the batch."""
    inputs: Any
    """What the network gets."""


@dataclass(frozen=True)
class Term:
    """One micro-batch of an optimizer step, of which this rank has a part."""

    inputs: Any
    """What the network gets."""
    loss_of: Callable[[Any], Tensor]
    """The part's mean loss from the network's output."""
    weight: float
    """What to multiply the loss by, so that the mean over ranks of the sum over terms is the mean over the batch."""
    samples: int
    """See `Part`."""
    seed: Callable[[], None]
    """Seeds the term's random numbers (dropout); called before its forward pass."""


def mean_loss(losses: Sequence[Tensor], terms: Sequence[Term]) -> Tensor:
    """The mean over a rank's samples of the step that has these `losses`, one per term."""
    samples = sum(term.samples for term in terms)
    if len(losses) == 1 or not samples:
        return losses[0]
    return torch.stack([loss * (term.samples / samples) for loss, term in zip(losses, terms, strict=True)]).sum()


def part_of(batch: Batch, ranks: Ranks, dtype: torch.dtype, augment: Callable[[Any], Any] | None = None) -> Part:
    """This rank's part of `batch`, in rank order, on its device; floating-point tensors in `dtype`.

    `augment` changes the inputs of the whole batch, of which the network then gets a part.

    Parts differ by at most one sample, the first ranks' being the larger ones. A batch whose samples cannot be told
    apart is taken whole by every rank.
    """

    def cast(tensor: Tensor) -> Tensor:
        return to_device(tensor, ranks.device, dtype if tensor.is_floating_point() else tensor.dtype)

    if (total := common_rows(batch)) is None:
        whole = map_tensors(cast, batch)
        return Part(whole, samples_in(batch), 1.0, inputs_of(whole) if augment is None else augment(inputs_of(whole)))
    share, larger = divmod(total, ranks.world_size)
    first = ranks.rank * share + min(ranks.rank, larger)
    samples = share + (ranks.rank < larger)
    rows = slice(first, first + samples) if samples else slice(1)
    part, weight = map_tensors(cast, take_rows(batch, rows)), ranks.world_size * samples / total
    if augment is None:
        return Part(part, samples, weight, inputs_of(part))
    return Part(part, samples, weight, take_rows(augment(map_tensors(cast, inputs_of(batch))), rows))
