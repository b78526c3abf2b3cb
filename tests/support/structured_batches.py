"""Tasks whose batches are mappings, tuples and nested structures, and a program that runs all of them on some ranks.

Each comes with its training as one would write it by hand, which shares no code with the package.
"""

from __future__ import annotations

import json
import sys
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from problems import CPU, make_problem
from torch import Tensor, nn
from torch.nn import functional as F

from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.commands.retrain.trainer import retrain
from fds_dist.common.faults import UserError
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.estimators import estimate_forward, estimate_reverse
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.inner.split_check import check_batches, check_split
from fds_dist.schedule.schedule import Schedule

CLASSES, TOKENS, SAMPLES, STEPS = 3, 11, 7, 6
BUCKETS = {"lr": [0.3, 0.2, 0.4], "momentum": [0.5, 0.7]}
WITH_SMOOTHING = {**BUCKETS, "smoothing": [0.1, 0.2]}
VALUES = [0.3, 0.2, 0.4, 0.5, 0.7]


@dataclass
class Output:
    """What a network of transformers gives: an object with scores and, where it got labels, its own loss."""

    logits: Tensor
    loss: Tensor | None = None


class Encoder(nn.Module):
    """Token ids [B, L], a weight for each token and perhaps labels, to an `Output` with a mean loss."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(TOKENS, 5), nn.Linear(5, CLASSES)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor | None = None, note: str = "") -> Output:
        """Called by keywords alone."""
        assert note in ("", "as it is")
        mean = (self.embed(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits = self.head(mean.tanh())
        return Output(logits, None if labels is None else F.cross_entropy(logits, labels))


class TwoInputs(nn.Module):
    """Two vectors [B, 4] to scores; the second may come in a mapping, and a scale for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor, z: Any, scale: Tensor | float = 1.0) -> Tensor:
        """The scores [B, CLASSES]."""
        right = z["inner"] if isinstance(z, dict) else z
        return self.head((self.left(x) + scale * self.right(right)).tanh())


class Autoencoder(nn.Module):
    """Vectors [B, 4] to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction."""
        return self.outer(self.inner(x).tanh())


def draw(*keys: int | str) -> dict[str, Tensor]:
    """Random tensors by name, of `SAMPLES` rows each."""
    random = torch.Generator().manual_seed(sum(map(ord, repr(keys))))
    x, z, weight, mask = (torch.rand(SAMPLES, n, generator=random, dtype=torch.float64) - 0.5 for n in (4, 4, 1, 6))
    ids = torch.randint(TOKENS, (SAMPLES, 6), generator=random)
    y = torch.randint(CLASSES, (SAMPLES,), generator=random)
    return {"x": x, "z": z, "weight": weight[:, 0] + 1, "mask": mask + 1, "ids": ids, "y": y}


def weighted(output: Tensor, target: dict[str, Tensor]) -> Tensor:
    """Cross-entropy with a weight for each sample."""
    return (target["weight"] * F.cross_entropy(output, target["label"], reduction="none")).mean()


def with_inputs(output: Tensor, target: Tensor, batch: Any) -> Tensor:
    """Reads the inputs by `mse_loss`, whose derivative needs explicit tangents of both arguments."""
    return F.cross_entropy(output, target) + F.mse_loss(output, batch[0][0][:, :CLASSES])


def smoothed(output: Output, batch: Any, hyperparameters: dict[str, Tensor]) -> Tensor:
    """Label smoothing as a hyperparameter, of a loss that gets the whole batch in the target's place."""
    log_p, s = output.logits.log_softmax(-1), hyperparameters["smoothing"]
    return (1 - s) * F.nll_loss(log_p, batch["labels"]) - s * log_p.mean()


@dataclass(frozen=True)
class Kind:
    """One structure of batches."""

    network: Callable[[], nn.Module]
    batch: Callable[[dict[str, Tensor]], Any]
    loss: Callable[..., Tensor]
    by_hand: Callable[[Callable[..., Any], dict[str, Tensor], dict[str, Tensor]], Tensor]
    """(network, tensors of the batch, hyperparameters of the loss) → training loss."""
    splits: bool = True
    """Along `mesh.data`."""
    val_loss: Callable[..., Tensor] | None = None


def _mapping(d: dict[str, Tensor]) -> Any:
    return UserDict(ids=d["ids"], mask=d["mask"], labels=d["y"], note="as it is")


def _scores(network: Callable[..., Any], d: dict[str, Tensor]) -> Tensor:
    return network(ids=d["ids"], mask=d["mask"]).logits


KINDS = {
    "mapping with its own loss": Kind(
        Encoder,
        _mapping,
        lambda output, batch: output.loss,
        lambda f, d, h: F.cross_entropy(_scores(f, d), d["y"]),
        splits=False,
    ),
    "mapping as inputs": Kind(
        Encoder,
        lambda d: ({"ids": d["ids"], "mask": d["mask"]}, d["y"]),
        lambda output, target: F.cross_entropy(output.logits, target),
        lambda f, d, h: F.cross_entropy(_scores(f, d), d["y"]),
    ),
    "tuple as inputs": Kind(
        TwoInputs,
        lambda d: [(d["x"], d["z"]), d["y"]],
        F.cross_entropy,
        lambda f, d, h: F.cross_entropy(f(d["x"], d["z"]), d["y"]),
    ),
    "nested": Kind(
        TwoInputs,
        lambda d: (
            {"x": d["x"], "z": {"inner": d["z"], "unused": None}, "scale": d["z"][0, 0]},
            {"label": d["y"], "weight": d["weight"]},
        ),
        weighted,
        lambda f, d, h: weighted(f(d["x"], d["z"], d["z"][0, 0]), {"label": d["y"], "weight": d["weight"]}),
    ),
    "the whole batch beside the target": Kind(
        TwoInputs,
        lambda d: ((d["x"], d["z"]), d["y"]),
        with_inputs,
        lambda f, d, h: with_inputs(f(d["x"], d["z"]), d["y"], ((d["x"], d["z"]), d["y"])),
    ),
    "the whole batch and a hyperparameter": Kind(
        Encoder,
        lambda d: {"ids": d["ids"], "mask": d["mask"], "labels": d["y"]},
        smoothed,
        lambda f, d, h: smoothed(Output(_scores(f, d)), {"labels": d["y"]}, h),
        splits=False,
        val_loss=lambda output, batch: F.cross_entropy(output.logits, batch["labels"]),
    ),
    "one tensor": Kind(
        Autoencoder,
        lambda d: d["x"],
        F.mse_loss,
        lambda f, d, h: F.mse_loss(f(d["x"]), d["x"]),
    ),
    "three tensors": Kind(
        TwoInputs,
        lambda d: (d["x"], d["z"], d["weight"][:1]),  # the last one is for all samples
        lambda output, target: F.mse_loss(output, target[0][:, :CLASSES]),
        lambda f, d, h: F.mse_loss(f(d["x"], d["z"], d["weight"][:1]), d["x"][:, :CLASSES]),
    ),
}


class StructuredTask:
    """Batches of one kind: `SAMPLES` samples, three a training epoch."""

    steps_per_epoch = 3

    def __init__(self, kind: Kind) -> None:
        self.kind, self.loss = kind, kind.loss
        if kind.val_loss is not None:
            self.val_loss = kind.val_loss

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[Any]:
        """The same in each epoch."""
        return (self.kind.batch(draw("train", step)) for step in range(self.steps_per_epoch))

    def val_batches(self, outer_step: int) -> Iterator[Any]:
        """One."""
        return iter([self.kind.batch(draw("val"))])

    def test_batches(self) -> Iterator[Any]:
        """One."""
        return self.val_batches(0)

    def build_model(self, seed: int) -> nn.Module:
        """The same weights for every seed."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return self.kind.network()


def buckets_of(kind: Kind) -> dict[str, list[float]]:
    """The hyperparameters that are learned with this kind."""
    return WITH_SMOOTHING if kind.loss is smoothed else BUCKETS


def problem_of(name: str, method: str = "double_backward") -> Problem:
    """The inner problem of a kind, in float64."""
    return make_problem(StructuredTask(KINDS[name]), buckets_of(KINDS[name]), {"weight_decay": 0.0}, method=method)


def run_of(name: str, ranks: Ranks, method: str = "double_backward") -> InnerRun:
    """The inner run of a kind over `STEPS` steps."""
    values = [value for row in buckets_of(KINDS[name]).values() for value in row]
    return InnerRun(problem_of(name, method), values, 0, STEPS, ranks)


def estimated(name: str, ranks: Ranks) -> dict[str, Any]:
    """What both estimators give; or the answer of the check of split batches."""
    try:
        check_batches(problem_of(name), 0, ranks.data)
        check_split(run_of(name, ranks))
    except UserError as error:
        return {"refused": str(error)}
    forward, reverse = estimate_forward(run_of(name, ranks)), estimate_reverse(run_of(name, ranks))
    return {"forward": [*forward.hypergradients, forward.val_loss], "reverse": reverse.hypergradients}


def retrained(name: str, ranks: Ranks, folder: Path) -> list[float]:
    """The training and the test losses of a retraining."""
    schedule = Schedule(STEPS, {"lr": (0.3, 0.2)}, {"momentum": 0.5, "weight_decay": 0.0}, {"name": "sgd"})
    task = StructuredTask(KINDS[name])
    settings = RetrainSettings(epochs=2, dtype="float64")
    (result,) = retrain(lambda seed: task, task.build_model, schedule, settings, ranks, folder / name)  # type: ignore[arg-type]
    return [loss for record in result.epochs for loss in (record.train_loss, record.test_loss)]


def run_all(folder: Path) -> None:
    """All kinds on two ranks; each rank writes what it got."""
    environment = read_environment()
    answers: dict[str, Any] = {}
    asked = json.loads((folder / "wanted.json").read_text())
    for axis, shape in {"tangent": MeshShape(1, 2, 1), "data": MeshShape(1, 1, 2)}.items():
        with Ranks(environment, shape, CPU) as ranks:
            answers |= {f"{axis} {name}": estimated(name, ranks) for name in KINDS if [name, axis] in asked}
    with Ranks(environment, MeshShape(1, 2, 1), CPU) as ranks:
        for name, kind in KINDS.items():
            if kind.loss is not smoothed:
                answers[f"retrain {name}"] = retrained(name, ranks, folder / "retrain")
    (folder / f"{environment.rank}.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(Path(sys.argv[1]))
