"""Two ranks of which the second one differs: as a program, `unlike_ranks.py FOLDER`, what each rank runs.

Starting PyTorch takes longer than such a case: all of them run one after the other in the same two processes, each in
its own `try`, and what each rank raised is in `FOLDER/ends-RANK.json`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from own_tasks import Blobs
from torch import nn

import fds_dist

SECOND = os.environ.get("RANK") == "1"


def config() -> dict[str, Any]:
    """One outer step of 4 inner steps of a small convolution network, not compared with plain PyTorch."""
    return {
        "task": {"name": "own_tasks:blobs"},
        "inner": {"epochs": 1},
        "hyperparameters": {
            "lr": {"init": 0.05, "buckets": 2, "step": 0.01},
            "momentum": {"init": 0.5, "step": 0.1},
        },
        "outer": {"optimizer": "sign", "steps": 1, "judge_seeds": 0},
        "consistency": {"witness": "off"},
    }


class Rolled(Blobs):
    """The same samples, in another order in each batch."""

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        return [(x.roll(1, 0), y.roll(1, 0)) for x, y in super().train_batches(outer_step, epoch)]


class Reordered(Blobs):
    def train_batches(self, outer_step: int, epoch: int) -> Any:
        return super().train_batches(outer_step, epoch)[::-1]


class OtherContent(Blobs):
    def train_batches(self, outer_step: int, epoch: int) -> Any:
        (x, y), *others = super().train_batches(outer_step, epoch)
        x = x.clone()
        x[3, 0, 2, 2] += 1e-6
        return [(x, y), *others]


class Smaller(Blobs):
    def train_batches(self, outer_step: int, epoch: int) -> Any:
        return [(x[:6], y[:6]) for x, y in super().train_batches(outer_step, epoch)]


class Longer(Blobs):
    steps_per_epoch = 5


class MoreBatches(Blobs):
    def train_batches(self, outer_step: int, epoch: int) -> Any:
        return [*super().train_batches(outer_step, epoch), self.batch(outer_step, epoch, 9)]


class OtherValidation(Blobs):
    def val_batches(self, outer_step: int) -> Any:
        return [self.batch(outer_step, -3)]


class MoreValidation(Blobs):
    def val_batches(self, outer_step: int) -> Any:
        return [self.batch(outer_step, -1), self.batch(outer_step, -3)]


class OtherWeights(Blobs):
    def build_model(self, seed: int) -> Any:
        torch.manual_seed(seed + 1)
        return super().build_model(seed)


class OtherBuffers(Blobs):
    def build_model(self, seed: int) -> Any:
        module = super().build_model(seed)
        module[1].running_mean += 0.5
        return module


class OtherShapes(Blobs):
    def build_model(self, seed: int) -> Any:
        module = super().build_model(seed)
        module[4] = nn.Sequential(nn.Linear(module[4].in_features, 4), nn.Linear(4, module[4].out_features))
        return module


@dataclass(frozen=True)
class Case:
    """How the second rank differs, and the line that every rank raises."""

    line: str
    """How it begins; the values are those of rank 0 and rank 1."""
    overrides: tuple[str, ...] = ()
    """Of the second rank."""
    common: tuple[str, ...] = ()
    """Of both ranks."""
    task: type[Blobs] | None = None
    """Of the second rank, where tasks are handed in from Python."""
    patch: Callable[[], Any] = nullcontext
    """A context in which the second rank runs."""
    content: Mapping[str, Any] | None = None
    """The config of the second rank."""
    command: str = "optimize"
    """The function of `fds_dist`."""
    second: str | None = None
    """That of the second rank, where it is another one."""


def set_to(override: str, line: str, *common: str) -> Case:
    return Case(line, (override,), common)


def data(task: type[Blobs], key: str) -> Case:
    return Case(f"task.{key}: first of ", task=task)


def weights(task: type[Blobs], key: str) -> Case:
    return Case(key, task=task)


def fake(target: str, value: Any) -> Callable[[], Any]:
    return lambda: mock.patch(target, value)


def faked_facts(**facts: Any) -> Callable[[], Any]:
    """The facts of a rank that has chosen otherwise."""
    from fds_dist.inner.run_facts import run_facts

    return fake("fds_dist.commands.inputs.run_facts", lambda *arguments: run_facts(*arguments) | facts)


def faked_version(package: str) -> Callable[[], Any]:
    from fds_dist.storage.provenance import version_of

    return fake("fds_dist.commands.meeting.version_of", lambda name: "0.0.1" if name == package else version_of(name))


def other_method() -> Any:
    """Where only the other method differentiates this network on the second rank."""
    return mock.patch("fds_dist.inner.dry_run.choose_method", lambda method, point: ("jvp", ""))


def reordered() -> dict[str, Any]:
    content = config()
    return {**content, "hyperparameters": dict(reversed(content["hyperparameters"].items()))}


CASES: dict[str, Case] = {
    "seed": set_to("seed=1", "seed: 0 on rank 0, 1 on rank 1; expected the same on all ranks"),
    "dtype": set_to("dtype=float64", "dtype: float32 on rank 0, float64 on rank 1"),
    "clip_hvp": set_to("tangents.clip_hvp=0.5", "tangents.clip_hvp: null on rank 0, 0.5 on rank 1"),
    "prune ratio": set_to("tangents.prune.ratio=0.5", "tangents.prune.ratio: 0.0 on rank 0, 0.5 on rank 1"),
    "prune mode": set_to("tangents.prune.mode=truncate", "tangents.prune.mode: alternate on rank 0, truncate on"),
    "method": set_to("tangents.method=jvp", "tangents.method: auto on rank 0, jvp on rank 1"),
    "chunk": set_to("tangents.chunk_size=2", "tangents.chunk_size: auto on rank 0, 2 on rank 1"),
    "compile": set_to("tangents.compile=trace", "tangents.compile: auto on rank 0, trace on rank 1"),
    "mesh": set_to("mesh.data=2", "mesh.data: 1 on rank 0, 2 on rank 1"),
    "replicas": set_to("mesh.replica=2", "mesh.replica: 1 on rank 0, 2 on rank 1"),
    "init": set_to("hyperparameters.lr.init=0.06", "hyperparameters.lr.init: 0.05 on rank 0, 0.06 on rank 1"),
    "buckets": set_to("hyperparameters.lr.buckets=3", "hyperparameters.lr.buckets: 2 on rank 0, 3 on rank 1"),
    "step": set_to("hyperparameters.lr.step=0.02", "hyperparameters.lr.step: 0.01 on rank 0, 0.02 on rank 1"),
    "another learned number": set_to(
        "hyperparameters.weight_decay={init: 1e-3, step: 1e-4}",
        "hyperparameters.weight_decay: left out on rank 0, given on rank 1",
    ),
    "fixed": set_to("hyperparameters.momentum=0.5", "hyperparameters.momentum: given on rank 0, 0.5 on rank 1"),
    "order": Case(
        "order of hyperparameters: ['lr', 'momentum'] on rank 0, ['momentum', 'lr'] on rank 1", content=reordered()
    ),
    "outer rule": set_to("outer.optimizer=adam", "outer.optimizer: sign on rank 0, adam on rank 1"),
    "outer steps": set_to("outer.steps=2", "outer.steps: 1 on rank 0, 2 on rank 1"),
    "validation mode": set_to(
        "outer.val_batch_norm=running", "outer.val_batch_norm: batch on rank 0, running on rank 1"
    ),
    "epochs": set_to("inner.epochs=2", "inner.epochs: 1.0 on rank 0, 2.0 on rank 1"),
    "optimizer": set_to("inner.nesterov=true", "inner.nesterov: false on rank 0, true on rank 1"),
    "clip_gradient": set_to("inner.clip_gradient=1.0", "inner.clip_gradient: null on rank 0, 1.0 on rank 1"),
    "estimator": set_to("estimator=reverse", "estimator: forward on rank 0, reverse on rank 1"),
    "mode": set_to("consistency.mode=broadcast", "consistency.mode: verify on rank 0, broadcast on rank 1"),
    "every": set_to("consistency.every=2", "consistency.every: 100 on rank 0, 2 on rank 1"),
    "task option": set_to("task.side=7", "task.side: left out on rank 0, 7 on rank 1"),
    "secret": set_to(
        "task.api_key=abc", "task.api_key: *** is another value on rank 0 and on rank 1", "task.api_key=x"
    ),
    "order of the data": data(Reordered, "train_batches"),
    "order in a batch": data(Rolled, "train_batches"),
    "one number of the data": data(OtherContent, "train_batches"),
    "batch size": data(Smaller, "train_batches"),
    "number of batches": data(MoreBatches, "train_batches"),
    "length of an epoch": Case("task.steps_per_epoch: 4 on rank 0, 5 on rank 1", task=Longer),
    "validation data": data(OtherValidation, "val_batches"),
    "number of validation batches": data(MoreValidation, "val_batches"),
    "initial weights": weights(OtherWeights, "initial weights: "),
    "initial buffers": weights(OtherBuffers, "initial buffers.1.running_mean: "),
    "shapes": weights(OtherShapes, "parameters.4.weight: [3, 32] on rank 0, left out on rank 1"),
    "version of torch": Case("version of torch: ", patch=faked_version("torch")),
    "version of numpy": Case("version of numpy: ", patch=faked_version("numpy")),
    "version of fds-dist": Case("version of fds-dist: ", patch=faked_version("fds-dist")),
    "version of Python": Case(
        "version of Python: ", patch=fake("fds_dist.commands.meeting.sys.version_info", (3, 9, 0))
    ),
    "device": Case("device: cpu on rank 0, cuda on rank 1", patch=faked_facts(device="cuda")),
    "method chosen": Case("tangents.method: double_backward on rank 0, jvp on rank 1", patch=other_method),
}
"""Name → a search of which the second rank differs."""


# A search is made first, so that it can be retrained and resumed.
COMMANDS: dict[str, Case] = {
    "verify": Case("seed: 0 on rank 0, 1 on rank 1", ("seed=1",), command="verify"),
    "noise": Case("seed: 0 on rank 0, 1 on rank 1", ("seed=1",), command="noise"),
    "compare": Case("seed: 0 on rank 0, 1 on rank 1", ("seed=1",), command="compare"),
    "check": Case("seed: 0 on rank 0, 1 on rank 1", ("seed=1",), command="check"),
    "bench": Case("seed: 0 on rank 0, 1 on rank 1", ("seed=1",), command="bench"),
    "retrain": Case("seed: 0 on rank 0, 1 on rank 1", ("seed=1",), command="retrain"),
    "retrain on other data": Case("task.train_batches: ([8, 1, 6, 6] float32", task=OtherContent, command="retrain"),
    "retrain another network": Case("model.parameters.4.weight: ", task=OtherShapes, command="retrain"),
    "another command": Case("command: optimize on rank 0, verify on rank 1", second="verify"),
}
"""Name → another command than a search, of which the second rank differs."""


def run(case: Case) -> None:
    command = case.second if SECOND and case.second else case.command
    source = "runs/first" if command == "retrain" else case.content if SECOND and case.content else config()
    handed = {"task": (case.task if SECOND else Blobs)()} if case.task is not None else {}
    getattr(fds_dist, command)(source, [*case.common, *(case.overrides if SECOND else ())], **handed)


def raised_by(case: Case) -> dict[str, str]:
    try:
        with case.patch() if SECOND else nullcontext():
            run(case)
    except Exception as error:
        return {"raised": type(error).__name__, "message": str(error)}
    return {"raised": "", "message": ""}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    fds_dist.optimize(config(), ["name=first"], progress=False)
    ends = {name: raised_by(case) for name, case in (CASES | COMMANDS).items()}
    (folder / f"ends-{int(SECOND)}.json").write_text(json.dumps(ends))
