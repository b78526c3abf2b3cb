"""The best weights of a retraining are chosen on validation data that is held out, or are the last; never on test data.

This file is also the script that the ranks run: `test_retrain_held_out.py FOLDER`.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import clean_environment, start_ranks
from problems import CPU, ONE_RANK, Ramp
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fds_dist.commands.retrain.checkpoints import read_state, write_state
from fds_dist.commands.retrain.records import Block, RetrainResult
from fds_dist.commands.retrain.reporting import ConsoleReporter, Reporter
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.commands.retrain.trainer import retrain
from fds_dist.common.faults import UserError
from fds_dist.common.records import to_values
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.schedule.schedule import Schedule
from fds_dist.tasks.in_memory import TensorTask

SCHEDULE = Schedule(15, {"lr": (1.0,)}, optimizer={"name": "sgd"})
SETTINGS = RetrainSettings(epochs=3, dtype="float64")
HOLD_OUT = SETTINGS.model_copy(update={"hold_out": True})
BY_DEEPSPEED = RetrainSettings(epochs=3, engine="deepspeed", deepspeed={"zero_optimization": {"stage": 1}})
KEPT = "no validation data is held out: the last weights are kept"
HINT = f"{KEPT} (hold_out=true chooses the best)"


def samples(*targets: float) -> tuple[Tensor, Tensor]:
    return torch.ones(len(targets), 1, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)


def mean_output(output: Tensor, target: Tensor) -> Tensor:
    return output.mean()


class Disagreeing:
    """w is -5, -10 and -15 after the epochs. The validation loss is lowest after the second epoch, the test loss after
    the first. All numbers are exact, also in float32."""

    steps_per_epoch = 5
    loss = staticmethod(mean_output)
    val_loss = staticmethod(F.mse_loss)
    val = (samples(-9, -11, -10), samples(-10))
    """With two ranks, parts of other sizes, and a batch of which the second rank gets nothing."""

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([samples(0, 0, 0)] * 5)

    def val_batches(self, outer_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.val)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([samples(-5, -5)])


class WithAccuracy(Disagreeing):
    """The share of targets that are far off is 3/4, 0 and 3/4 in validation, and 0, 1 and 1 in the test."""

    def metrics(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"accuracy": ((output - target).abs() > 4.5).double().mean()}


class OnAllData(Disagreeing):
    """w is -6, -12 and -18 after the epochs over all data."""

    retrain_steps_per_epoch = 6

    def retrain_batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([samples(0, 0, 0)] * 6)


class WithoutValidation(Disagreeing):
    val = ()


class Told(Reporter):
    """Keeps the notes; ends the retraining after the step `end_at`, as a signal would."""

    def __init__(self, end_at: int | None = None) -> None:
        self.notes: list[str] = []
        self.end_at = end_at

    def note(self, message: str) -> None:
        self.notes.append(message)

    def block(self, block: Block) -> None:
        if block.step == self.end_at:
            raise KeyboardInterrupt


def run(
    task: Any,
    folder: Path,
    settings: RetrainSettings = SETTINGS,
    reporter: Reporter | None = None,
    ranks: Ranks = ONE_RANK,
) -> RetrainResult:
    (result,) = retrain(
        lambda seed: task, lambda seed: Ramp(), SCHEDULE, settings, ranks, folder, [reporter] if reporter else []
    )
    return result


def weight(folder: Path, name: str) -> float:
    return load_file(folder / "0" / f"{name}.safetensors")["w"].item()


def summary(folder: Path) -> dict[str, Any]:
    """The means, and what is no figure as it is."""
    values = json.loads((folder / "summary.json").read_text())
    return {name: value["mean"] if isinstance(value, dict) else value for name, value in values.items()}


# What is chosen


@pytest.mark.parametrize(
    ("task", "by", "epoch"), [(Disagreeing(), "val_loss", 1), (WithAccuracy(), "val_accuracy", 0)], ids=["loss", "acc"]
)
def test_the_best_weights_are_chosen_on_validation_and_not_on_test_data(
    tmp_path: Path, task: Any, by: str, epoch: int
) -> None:
    result = run(task, tmp_path)
    assert [record.val_loss for record in result.epochs] == [25.5, 0.5, 25.5]
    assert [record.test_loss for record in result.epochs] == [0, 25, 100]
    assert result.best.epoch == epoch and result.final.epoch == 2
    assert (weight(tmp_path, "best"), weight(tmp_path, "last")) == (-5 * (epoch + 1), -15)
    lines = [json.loads(line) for line in (result.folder / "history.jsonl").read_text().splitlines()]
    assert [line["val_loss"] for line in lines] == [25.5, 0.5, 25.5]
    figures = summary(tmp_path)
    assert figures["best_by"] == by
    assert (figures["best_val_loss"], figures["final_val_loss"]) == ((25.5, 0.5)[epoch], 25.5)
    assert (figures["best_test_loss"], figures["final_test_loss"]) == ((0, 25)[epoch], 100)
    has_accuracy = by == "val_accuracy"
    assert (figures["best_val_accuracy"], figures["best_test_accuracy"]) == (
        (0.75, 0) if has_accuracy else (None, None)
    )


def test_hold_out_trains_without_the_validation_part_and_chooses_by_it(tmp_path: Path) -> None:
    told = Told()
    result = run(OnAllData(), tmp_path, HOLD_OUT, told)
    assert [record.step for record in result.epochs] == [5, 10, 15] and result.best.epoch == 1
    assert (weight(tmp_path, "best"), weight(tmp_path, "last")) == (-10, -15)
    assert told.notes == ["hold_out=true: trained on train_batches, without the validation part"]


def test_hold_out_changes_nothing_where_the_validation_part_is_left_out_anyway(tmp_path: Path) -> None:
    plain, held_out = (run(Disagreeing(), tmp_path / str(s.hold_out), s).epochs for s in (SETTINGS, HOLD_OUT))
    assert [replace(record, seconds=0) for record in plain] == [replace(record, seconds=0) for record in held_out]


@pytest.mark.parametrize(("task", "last", "note"), [(OnAllData(), -18, HINT), (WithoutValidation(), -15, KEPT)])
def test_without_held_out_data_the_last_weights_are_kept_and_told(
    tmp_path: Path, task: Any, last: float, note: str
) -> None:
    told = Told()
    result = run(task, tmp_path, SETTINGS, told)
    assert [record.val_loss for record in result.epochs] == [None] * 3
    assert told.notes[-1] == note
    assert result.best is result.final
    assert weight(tmp_path, "best") == weight(tmp_path, "last") == last
    figures = summary(tmp_path)
    assert figures["best_by"] == ""
    for figure in ("test_loss", "test_accuracy", "val_loss", "val_accuracy"):
        assert figures[f"best_{figure}"] == figures[f"final_{figure}"]


def test_data_that_cannot_be_held_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hold_out: true holds nothing out, because there is no validation data"):
        run(WithoutValidation(), tmp_path, HOLD_OUT)
    inputs, targets = samples(*range(20))
    overlapping = TensorTask(inputs, targets, batch_size=4, val_overlap=True, loss=F.mse_loss)
    with pytest.raises(UserError, match=r"because task\.val_overlap trains on the validation part; expected false"):
        run(overlapping, tmp_path, HOLD_OUT)
    assert not list(tmp_path.glob("*/state.safetensors"))


def test_the_test_on_validation_data_is_told_as_no_test_of_the_choice(tmp_path: Path) -> None:
    class Untested(Disagreeing):
        def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(())

    told = Told()
    result = run(Untested(), tmp_path, SETTINGS, told)
    assert [record.val_loss for record in result.epochs] == [record.test_loss for record in result.epochs]
    assert "tested on val_batches(0). The best weights are chosen by them, too." in told.notes[1]


@pytest.mark.parametrize("task", [Disagreeing(), OnAllData(), WithAccuracy()])
def test_the_console_says_what_the_best_is_chosen_by(tmp_path: Path, task: Any) -> None:
    file = io.StringIO()
    run(task, tmp_path, SETTINGS, ConsoleReporter(Console(file=file, width=200)))
    text = file.getvalue()
    if isinstance(task, OnAllData):
        assert f"note: {HINT}" in text and "best weights" not in text and "val loss" not in text
    elif isinstance(task, WithAccuracy):
        assert "val loss 0.5, val accuracy 0.00%, test loss 25, test accuracy 100.00%" in text
        assert "test accuracy of the best weights 0.00%" in text
        assert "best.safetensors: the weights of the highest validation accuracy" in text
    else:
        assert "test loss of the best weights 25" in text
        assert "best.safetensors: the weights of the lowest validation loss (there is no accuracy)" in text


# Going on


def test_interrupted_after_the_best_epoch_it_is_still_the_best(tmp_path: Path) -> None:
    whole = run(OnAllData(), tmp_path / "whole", HOLD_OUT)
    with pytest.raises(KeyboardInterrupt):
        run(OnAllData(), tmp_path / "cut", HOLD_OUT, Told(end_at=12))
    with pytest.raises(
        UserError, match=r"holds a retraining with hold_out=True, horizon=15; expected the same settings"
    ):
        run(OnAllData(), tmp_path / "cut")
    resumed = run(OnAllData(), tmp_path / "cut", HOLD_OUT)
    assert [replace(record, seconds=0) for record in resumed.epochs] == [
        replace(record, seconds=0) for record in whole.epochs
    ]
    assert resumed.best.epoch == 1 and weight(tmp_path / "cut", "best") == -10


def made_older(folder: Path) -> None:
    """The state as an earlier version wrote it."""
    path = folder / "0" / "state.safetensors"
    state = read_state(path)
    assert state is not None
    tensors, progress = state
    del progress["identity"]["hold_out"]
    for record in progress["records"]:
        del record["val_loss"], record["val_accuracy"]
    write_state(path, tensors, progress)


def test_an_older_retraining_goes_on_and_keeps_its_files_where_it_is_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Disagreeing(), tmp_path / "cut", SETTINGS, Told(end_at=7))
    run(Disagreeing(), tmp_path / "done")
    for folder in (tmp_path / "cut", tmp_path / "done"):
        made_older(folder)
        with pytest.raises(UserError, match="holds a retraining with hold_out=False"):
            run(Disagreeing(), folder, HOLD_OUT)
    told = Told()
    result = run(Disagreeing(), tmp_path / "cut", SETTINGS, told)
    assert [record.val_loss for record in result.epochs] == [None, 0.5, 25.5]
    assert weight(tmp_path / "cut", "best") == -10 and "earlier version" not in "".join(told.notes)
    result = run(Disagreeing(), tmp_path / "done", SETTINGS, told)
    assert result.best is result.final and weight(tmp_path / "done", "best") == -10
    assert "best.safetensors is by an earlier version, which chose it on the test data" in told.notes[-1]


# Ranks


def main(folder: Path) -> None:
    """What each rank does."""
    environment = read_environment()
    with Ranks(environment, MeshShape(1, environment.world_size, 1), CPU) as ranks:
        run(OnAllData(), folder / "held-out", HOLD_OUT, ranks=ranks)
        run(WithAccuracy(), folder / "accuracy", ranks=ranks)
        run(OnAllData(), folder / "last", ranks=ranks)
        if find_spec("deepspeed"):
            run(OnAllData(), folder / "deepspeed", BY_DEEPSPEED.model_copy(update={"hold_out": True}), ranks=ranks)
            run(OnAllData(), folder / "deepspeed-last", BY_DEEPSPEED, ranks=ranks)


def test_two_ranks_choose_as_one_by_ddp_and_by_deepspeed(tmp_path: Path) -> None:
    environment = clean_environment(OMP_NUM_THREADS="1")
    ended = start_ranks([__file__, str(tmp_path)], 2, [tmp_path], environment)
    assert [rank.status for rank in ended] == [0, 0], ended[0].err
    one = partial(run, folder=tmp_path / "one")
    runs: list[tuple[str, Any, RetrainSettings]] = [
        ("held-out", OnAllData(), HOLD_OUT),
        ("accuracy", WithAccuracy(), SETTINGS),
        ("last", OnAllData(), SETTINGS),
    ]
    if find_spec("deepspeed"):
        runs += [("deepspeed", OnAllData(), HOLD_OUT), ("deepspeed-last", OnAllData(), SETTINGS)]
    for name, task, settings in runs:
        expected = one(task, settings=settings.model_copy(update={"restart": True}))
        # All figures are whole numbers or quarters, hence the same in any order of sums and in float32.
        lines = (tmp_path / name / "0" / "history.jsonl").read_text().splitlines()
        figures = [f"{part}_{figure}" for part in ("val", "test") for figure in ("loss", "accuracy")]
        for line, record in zip(map(json.loads, lines), expected.epochs, strict=True):
            assert [line[figure] for figure in figures] == [to_values(record)[figure] for figure in figures]
            assert line["world_size"] == 2
        for file in ("best", "last"):
            assert weight(tmp_path / name, file) == weight(tmp_path / "one", file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
