"""Outputs of any kind, the task's own metrics, and where the built-in accuracy is meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fds_dist
from fds_dist.commands.retrain.records import EpochRecord, RetrainResult, Summary, best_of
from fds_dist.common.batch import map_tensors
from fds_dist.common.faults import UserError
from fds_dist.tasks.base import task_faults
from fds_dist.tasks.metrics import Mean, class_answers

CONFIG: dict[str, Any] = {
    "inner": {"optimizer": "sgd", "epochs": 1},
    "hyperparameters": {"lr": {"init": 0.1, "buckets": 2, "step": 0.01}},
    "outer": {"optimizer": "sign", "steps": 1},
    "dtype": "float64",
}


def small_task(**functions: Any) -> Any:
    """Three classes of 6 features; 8 steps an epoch."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(100, 6, generator=random)
    return fds_dist.task_from_datasets((x, x[:, :3].argmax(1)), batch_size=10, val_fraction=0.2, **functions)


class Wrapped(nn.Module):
    """Two heads whose outputs are wrapped in an object."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.body(x))
        return self.wrap(self.head(hidden), self.other(hidden))


def build(seed: int, wrap: Any) -> nn.Module:
    torch.manual_seed(seed)
    return Wrapped(wrap)


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


WRAPS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda a, b: (a, b), lambda output: output[0]),
    "mapping": (lambda a, b: {"logits": a, "other": [b]}, lambda output: output["logits"]),
    "dataclass": (lambda a, b: Output(a, b), lambda output: output.logits),
    "object": (lambda a, b: SimpleNamespace(logits=a), lambda output: output.logits),
}


@pytest.mark.parametrize("estimator", ["forward", "greedy"])
@pytest.mark.parametrize("kind", WRAPS)
def test_an_output_of_any_kind_reaches_loss_and_metrics(kind: str, estimator: str, tmp_path: Any) -> None:
    wrap, logits = WRAPS[kind]

    def loss(output: Any, target: Tensor) -> Tensor:
        return F.cross_entropy(logits(output), target)

    def metrics(output: Any, target: Tensor) -> dict[str, Any]:
        return {"error": (logits(output).argmax(1) != target).double().mean(), "one": 1.0}

    config = {**CONFIG, "estimator": estimator, "output_dir": str(tmp_path)}
    wrapped, plain = (
        fds_dist.optimize(config, task=task, model=partial(build, wrap=each), progress=False).history[0]
        for task, each in ((small_task(loss=loss, metrics=metrics), wrap), (small_task(), lambda a, b: a))
    )
    assert wrapped.hypergradients["lr"] == pytest.approx(plain.hypergradients["lr"])
    assert wrapped.val_accuracy is None and plain.metrics is None
    assert wrapped.metrics is not None and wrapped.metrics["one"] == 1.0
    assert wrapped.metrics["error"] == pytest.approx(1 - plain.val_accuracy)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (lambda output, target: output.accuracy, "metrics(output, target) raised AttributeError"),
        (lambda output, target: 0.5, "returned a float"),
        (lambda output, target: {"f1": output}, "'f1' of metrics(output, target) is of shape [20, 3]"),
        (lambda output, target: {"f1": "high"}, "'f1' of metrics(output, target) is a str"),
        (lambda output, target: {1: 0.5}, "returned the name 1"),
    ],
)
def test_wrong_metrics_are_told_before_training(metrics: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        fds_dist.optimize(CONFIG, task=small_task(metrics=metrics), model=nn.Linear(6, 3), progress=False)
    (fault,) = raised.value.faults
    assert fault.key == "task.metrics" and message in str(fault)


def test_metrics_must_be_a_function_of_output_and_target() -> None:
    task = small_task()
    for wrong in (0.5, lambda output: {}):
        task.metrics = wrong
        assert [fault.key for fault in task_faults(task)] == ["task.metrics"]


def score_of(*batches: tuple[Any, Tensor], metrics: Any = None) -> Any:
    mean = Mean(SimpleNamespace(metrics=metrics))  # type: ignore[arg-type]
    for output, targets in batches:
        mean.add(torch.tensor(1.0), output, targets)
    return mean.score()


def scores(*rows: int, classes: int = 3) -> Tensor:
    """Outputs whose largest entries are at `rows`."""
    return F.one_hot(torch.tensor(rows), classes).float()


@pytest.mark.parametrize(
    ("output", "targets", "expected"),
    [
        (scores(0, 1, 2), torch.tensor([0, 1, 1]), 2 / 3),
        (scores(0, 1, 2), torch.tensor([0, 1, 1], dtype=torch.uint8), 2 / 3),
        (scores(0, 1, 2), torch.tensor([0, -100, 1]), 1 / 2),  # an ignored target counts neither way
        (scores(0, 1, 2), torch.tensor([-100, -100, -100]), None),  # nothing was asked for
        (scores(0, 1, 2), torch.tensor([0, 1, 255]), None),  # ignored by the loss, or a mistake
        (scores(0, 1, 2), torch.tensor([0, 1, -1]), None),
        (scores(0, 1, 2).long(), torch.tensor([0, 1, 1]), None),  # no scores
        (scores(0, 1, 2), torch.tensor([0.0, 1.0, 1.0]), None),  # regression, or soft labels
        (scores(0, 1, 2), torch.tensor([True, False, True]), None),
        (scores(0, 1, 2), torch.tensor([[0], [1], [1]]), None),
        (scores(0, 0, 0, classes=1), torch.tensor([0, 0, 0]), None),  # one logit
        (torch.rand(3), torch.tensor([0, 1, 1]), None),
        (torch.rand(2, 4, 4), torch.zeros(2, 4, dtype=torch.int64), None),  # classes along either dimension
        ((scores(0, 1, 2),), torch.tensor([0, 1, 1]), None),
        ({"logits": scores(0, 1, 2)}, torch.tensor([0, 1, 1]), None),
    ],
)
def test_the_built_in_accuracy_is_given_only_where_it_is_meant(output: Any, targets: Tensor, expected: Any) -> None:
    assert score_of((output, targets)).accuracy == expected


def test_answers_weigh_alike_whatever_their_batch_and_metrics_by_samples() -> None:
    batches = (scores(0, 1), torch.tensor([0, 1])), (scores(0, 1, 2, 0), torch.tensor([1, -100, 2, -100]))
    assert score_of(*batches).accuracy == 3 / 4
    score = score_of(*batches, metrics=lambda output, target: {"size": len(target), "accuracy": torch.tensor(0.5)})
    assert (score.accuracy, score.metrics) == (0.5, {"size": (2 * 2 + 4 * 4) / 6})


def test_metrics_have_the_same_names_for_all_batches() -> None:
    batch = scores(0, 1), torch.tensor([0, 1])
    names = iter("ab")
    with pytest.raises(UserError, match="returned a for one batch and b for another"):
        score_of(batch, batch, metrics=lambda output, target: {next(names): 1.0})


def test_a_part_without_samples_does_not_count() -> None:
    mean = Mean(SimpleNamespace(metrics=lambda output, target: {"m": float("nan")}))  # type: ignore[arg-type]
    mean.add(torch.tensor(float("nan")), scores(0), torch.tensor([0]), samples=0)
    score = mean.score(lambda sums: sums + torch.tensor([6.0, 3.0, 2.0, 3.0, 0.0, 0.0, 9.0]))  # the other rank's
    assert (score.loss, score.accuracy, score.metrics) == (2.0, 2 / 3, {"m": 3.0})


def test_tensors_of_an_output_are_found_or_the_object_is_refused() -> None:
    output = (Output(torch.ones(2), None), {"rest": [torch.ones(3), 1, None, "text"]})
    doubled = map_tensors(lambda tensor: 2 * tensor, output)
    assert torch.equal(doubled[0].logits, 2 * torch.ones(2)) and doubled[0].hidden is None
    assert torch.equal(doubled[1]["rest"][0], 2 * torch.ones(3)) and doubled[1]["rest"][1:] == [1, None, "text"]
    with pytest.raises(UserError, match=r"mesh.data: the network's output is or holds a SimpleNamespace"):
        map_tensors(lambda tensor: tensor, {"a": SimpleNamespace(logits=torch.ones(2))})


def record(epoch: int, loss: float, accuracy: float | None) -> EpochRecord:
    """One whose validation has these figures. The test's would choose the first epoch."""
    test = epoch + 1.0, 1.0 / (epoch + 1)
    return EpochRecord(0, epoch, epoch + 1, 1.0, *test, {}, 1.0, 1, val_loss=loss, val_accuracy=accuracy)


def test_retraining_keeps_the_best_by_accuracy_only_where_there_is_one(tmp_path: Any) -> None:
    nan = float("nan")
    by_accuracy = [record(0, 0.1, nan), record(1, 0.9, 0.9), record(2, 0.2, 0.9), record(3, 0.1, 0.8)]
    by_loss = [record(0, nan, None), record(1, 0.3, None), record(2, 0.2, None), record(3, 0.4, None)]
    assert best_of(by_accuracy).epoch == 1 and best_of(by_loss).epoch == 2
    for records, name, loss in ((by_accuracy, "val_accuracy", 0.9), (by_loss, "val_loss", 0.2)):
        summary = Summary.of([RetrainResult(0, tmp_path, tuple(records))])
        assert summary.best_by == name
        assert summary.best_val_loss is not None and summary.best_val_loss.mean == loss


def test_class_answers_are_counted_on_integers_of_any_width() -> None:
    for dtype in (torch.uint8, torch.int8, torch.int32, torch.int64):
        counts = class_answers(scores(0, 1, 2), torch.tensor([0, 2, 2], dtype=dtype))
        assert counts is not None and counts.tolist() == [2, 3, 0]
