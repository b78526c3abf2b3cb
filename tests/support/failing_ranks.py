"""Two ranks of which one fails, or sees what is not finite: as a program, `failing_ranks.py FOLDER`.

All cases run one after the other in the same two processes, each in its own `try`; how each rank ended is in
`FOLDER/ends-RANK.json`. As a task of a config, `failing_ranks:starved` runs out of memory on rank 1.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from own_tasks import Blobs
from torch import Tensor

import fds_dist

RANK = int(os.environ.get("RANK", "0"))
LACKS: dict[str, Callable[[], Exception]] = {
    "of a GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines"),
    "of PyTorch": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "of NumPy": lambda: MemoryError("Unable to allocate 3.6 TiB for an array"),
}
"""Whose memory → what its allocator raises."""


def config(**sections: Any) -> dict[str, Any]:
    """Two outer steps of 12 inner steps, compared every third, not compared with plain PyTorch."""
    return {
        "task": {"name": "failing"},
        "inner": {"epochs": 3},
        "hyperparameters": {"lr": {"init": 0.05, "buckets": 2, "step": 0.01}, "momentum": {"init": 0.5, "step": 0.1}},
        "outer": {"optimizer": "sign", "steps": 2, "judge_seeds": 0},
        "consistency": {"witness": "off", "every": 3},
        **sections,
    }


class Failing(Blobs):
    """From the second epoch on `trained` changes what the loss gives on the rank `failing`, in the second outer step
    `validated` what the validation loss gives; each may raise."""

    def __init__(self, case: Case, failing: int) -> None:
        super().__init__()
        self.case, self.fails = case, failing == RANK
        self.is_trained = self.is_validated = False

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        self.is_trained, self.is_validated = self.fails and epoch > 0, False
        batches = super().train_batches(outer_step, epoch)
        return self.case.train_batches(batches) if self.is_trained else batches

    def val_batches(self, outer_step: int) -> Any:
        self.is_trained, self.is_validated = False, self.fails and outer_step > 0
        batches = super().val_batches(outer_step)
        return self.case.val_batches(batches) if self.is_validated else batches

    def loss(self, output: Tensor, target: Tensor) -> Any:
        loss = super().loss(output, target)
        return self.case.loss(loss, output) if self.is_trained else loss

    def val_loss(self, output: Tensor, target: Tensor) -> Any:
        loss = super().loss(output, target)
        return self.case.val_loss(loss, output) if self.is_validated else loss

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, float]:
        return self.case.metrics() if self.is_validated else {"one": 1.0}


def unchanged(value: Any, *_: Any) -> Any:
    return value


def planted(*_: Any) -> Any:
    raise ValueError("planted")


def not_finite(batches: Any) -> Any:
    return [(x * math.nan, y) for x, y in batches]


@dataclass(frozen=True)
class Case:
    """What happens on one rank alone, and how the run ends."""

    cause: str = ""
    """What the other rank is told beside the number of the rank; "": both go on alike."""
    train_batches: Callable[[Any], Any] = unchanged
    val_batches: Callable[[Any], Any] = unchanged
    loss: Callable[[Tensor, Tensor], Any] = unchanged
    val_loss: Callable[[Tensor, Tensor], Any] = unchanged
    metrics: Callable[[], dict[str, float]] = lambda: {"one": 1.0}
    patch: Callable[[], AbstractContextManager[Any]] = nullcontext
    """A context in which the rank runs."""
    sections: dict[str, Any] = field(default_factory=dict)
    """Of the config."""


def broken_tangents() -> AbstractContextManager[Any]:
    from fds_dist.inner import horizon

    def broken(*arguments: Any) -> Any:
        tangents = zeros(*arguments)
        tangents.weights.fill_(math.nan)
        return tangents

    zeros = horizon.zero_tangents
    return mock.patch.object(horizon, "zero_tangents", broken)


def with_mode(mode: str) -> dict[str, Any]:
    return {"consistency": {"witness": "off", "every": 3, "mode": mode}}


WEIGHTS = "are not finite, unlike the other ranks'"
CASES: dict[str, Case] = {
    "the loss is NaN": Case(WEIGHTS, loss=lambda loss, output: loss * math.nan),
    "the loss is infinite": Case(WEIGHTS, loss=lambda loss, output: loss * math.inf),
    "the loss is NaN, its gradient is finite": Case(loss=lambda loss, output: loss + math.nan),
    "the gradient is NaN": Case(WEIGHTS, loss=lambda loss, output: loss + (output - output).abs().sqrt().sum()),
    "a training batch is NaN": Case(WEIGHTS, train_batches=not_finite),
    "tangents are NaN": Case(patch=broken_tangents),
    "the validation loss is NaN": Case("the validation loss of outer step 1", val_loss=lambda loss, _: loss * math.nan),
    "a validation batch is NaN": Case("NaN or infinite", val_batches=not_finite),
    "other validation data": Case(
        "the validation loss of outer step 1", val_batches=lambda batches: [(x.flip(0), y) for x, y in batches]
    ),
    "validation batches raise": Case("ValueError: planted", val_batches=planted),
    "training batches raise": Case("ValueError: planted", train_batches=planted),
    "too few training batches": Case("gave 2 batches", train_batches=lambda batches: batches[:2]),
    "no validation batch": Case("gave no batch", val_batches=lambda batches: []),
    "the loss raises": Case("ValueError: planted", loss=planted),
    "a metric raises": Case("planted", metrics=planted),
    "a metric is NaN": Case(metrics=lambda: {"one": math.nan}),
    "the loss is NaN, and weights are copied": Case(
        WEIGHTS, loss=lambda loss, output: loss * math.nan, sections=with_mode("broadcast")
    ),
    "the loss is NaN, and nothing is compared": Case(
        loss=lambda loss, output: loss * math.nan, sections=with_mode("off")
    ),
    "the loss is NaN, batches are split": Case(
        loss=lambda loss, output: loss * math.nan, sections={"mesh": {"data": 2}}
    ),
    "training batches raise, batches are split": Case(
        "ValueError: planted", train_batches=planted, sections={"mesh": {"data": 2}}
    ),
    "training batches raise in one replica": Case(
        "ValueError: planted", train_batches=planted, sections={"mesh": {"replica": 2}}
    ),
    "the loss is NaN in one replica": Case(
        loss=lambda loss, output: loss * math.nan, sections={"mesh": {"replica": 2}}
    ),
}
"""Name → what happens on one rank."""


def lacking(target: str, lack: str) -> Case:
    """A rank that lacks memory where `target` is called."""
    error = LACKS[lack]()
    sections = {"checkpoint": {"every_seconds": 1e-9}}
    return Case("out of memory", patch=lambda: mock.patch(target, side_effect=error), sections=sections)


PLACES = {
    "at the start": "fds_dist.commands.inputs.build",
    "at the tangents": "fds_dist.inner.horizon.zero_tangents",
    "in a step": "fds_dist.inner.horizon.updated_rows",
    "at the validation": "fds_dist.inner.estimators.forward.validate",
    "while saving": "fds_dist.inner.checkpoints.tensors_to_write",
}
"""Where a rank lacks memory → the function that it is in."""

TRACED = replace(
    lacking("fds_dist.inner.compiled_training.store", "of a GPU"),
    sections={"mesh": {"data": 2}, "tangents": {"compile": "trace", "method": "jvp"}},
)
"""A rank that lacks memory in a traced step, after the compared ones, while the other one waits for what it sends."""

MEMORY = {f"{where}, {lack}": lacking(target, lack) for where, target in PLACES.items() for lack in LACKS}
MEMORY["in a traced step, of a GPU"] = TRACED


def end_of(case: Case, failing: int, name: str) -> dict[str, Any]:
    """What one case ended with on this rank."""
    task = Failing(case, failing)
    try:
        with case.patch() if task.fails else nullcontext():
            result = fds_dist.optimize(config(name=name, **case.sections), task=task, progress=False)
    except Exception as error:
        return {"raised": type(error).__name__, "message": str(error)}
    return {"raised": "", "message": result.schedule.to_json()}


def starved() -> Failing:
    """The task of a rank that lacks memory in a step."""

    def lacks(*_: Any) -> Any:
        raise LACKS["of a GPU"]()

    return Failing(Case(loss=lacks), 1)


ALL = {f"{name} on rank {rank}": (case, rank) for name, case in (CASES | MEMORY).items() for rank in (0, 1)}
"""Name → the case and the rank that fails."""

QUICK = (
    "the loss is NaN on rank 0",
    "the validation loss is NaN on rank 1",
    "training batches raise on rank 0",
    "too few training batches on rank 1",
    "a metric raises on rank 0",
    "the loss is NaN, and nothing is compared on rank 0",
    "at the start, of PyTorch on rank 1",
    "at the tangents, of NumPy on rank 0",
    "in a step, of a GPU on rank 1",
    "while saving, of PyTorch on rank 1",
    "in a traced step, of a GPU on rank 1",
)
"""Those that are tried at each change; all of them take minutes."""


if __name__ == "__main__":
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    ends: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(names):
        ends[name] = end_of(*ALL[name], f"run-{place}")
        (folder / f"ends-{RANK}.json").write_text(json.dumps(ends))
