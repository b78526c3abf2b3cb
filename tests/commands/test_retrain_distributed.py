"""Retraining on two ranks (gloo) against one: the same to rounding; killed and resumed: the same bits.

This file is also the script that the ranks run: `test_retrain_distributed.py JOB FOLDER`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from launching import start_ranks, wait_for
from problems import CLASSES, CPU, ONE_RANK, conv_bn, images, mlp, relative_error, smoothed_cross_entropy
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fds_dist.commands.retrain.checkpoints import read_state
from fds_dist.commands.retrain.records import Block
from fds_dist.commands.retrain.reporting import Reporter
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.commands.retrain.trainer import retrain
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.schedule.schedule import Schedule

SCHEDULE = Schedule(
    12,
    {"lr": (0.3, 0.1), "momentum": (0.5, 0.9, 0.7), "smoothing": (0.0, 0.3)},
    {"weight_decay": 1e-2},
    {"name": "sgd", "nesterov": True},
)
SETTINGS = RetrainSettings(epochs=3, dtype="float64", clip_gradient=0.05, clip_norm=0.2, ema=0.9)
"""The bounds cut some elements at every step, and the norm at some."""
ACCUMULATED = SETTINGS.model_copy(update={"accumulate": 3})
BATCHES = (7, 1, 5, 8)
"""Samples: with two ranks, parts of other sizes, and a batch of which the second rank gets nothing."""


class UnevenTask:
    """Batches of `BATCHES` samples; test batches of 3, 1 and 6. The loss has a hyperparameter of its own."""

    steps_per_epoch = len(BATCHES)
    loss = staticmethod(smoothed_cross_entropy)
    val_loss = staticmethod(F.cross_entropy)

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return (images(size, "train", epoch, size) for size in BATCHES)

    def val_batches(self, outer_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(())

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (images(size, "test", size) for size in (3, 1, 6))


def built(seed: int) -> nn.Module:
    torch.manual_seed(0)
    return mlp()


def built_with_batch_norm(seed: int) -> nn.Module:
    torch.manual_seed(0)
    return conv_bn()


class Notes(Reporter):
    """A reporter that keeps the notes, and kills its process after step `kill_at`, once the state of two epochs is
    written: a thread writes it, and may still be at it."""

    def __init__(self, kill_at: int | None = None, state: Path = Path()) -> None:
        self.kill_at, self.state = kill_at, state
        self.notes: list[str] = []

    def block(self, block: Block) -> None:
        if block.step == self.kill_at:
            wait_for(lambda: len((read_state(self.state) or ({}, {"records": ()}))[1]["records"]) == 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, message: str) -> None:
        self.notes.append(message)


def run(ranks: Ranks, folder: Path, reporters: Sequence[Reporter] = ()) -> None:
    retrain(lambda seed: UnevenTask(), built, SCHEDULE, SETTINGS, ranks, folder, reporters)


def main(job: str, folder: Path) -> None:
    """What each rank does."""
    environment = read_environment()
    with Ranks(environment, MeshShape(1, environment.world_size, 1), CPU) as ranks:
        if job == "resume":
            run(ranks, folder / "cut")
            return
        run(ranks, folder / "whole")
        notes = Notes()
        settings = RetrainSettings(epochs=1, dtype="float64")
        retrain(lambda s: UnevenTask(), built_with_batch_norm, SCHEDULE, settings, ranks, folder / "norm", [notes])
        if ranks.is_first:
            (folder / "notes.json").write_text(json.dumps(notes.notes))
        retrain(lambda seed: UnevenTask(), built, SCHEDULE, ACCUMULATED, ranks, folder / "accumulated")
        killer = Notes(10, folder / "cut" / "0" / "state.safetensors")
        run(ranks, folder / "cut", [killer])  # in the third of three epochs of 4 steps


def launch(job: str, folder: Path) -> list[int]:
    """The exit statuses of `job` on two ranks."""
    ended = start_ranks([__file__, job, str(folder)], 2, [folder])
    print(*ended, sep="\n")  # shown where a test fails
    return [rank.status for rank in ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a retraining on two ranks, `whole`, and of one that was killed in its last epoch, `cut`."""
    path = tmp_path_factory.mktemp("two_ranks")
    assert -signal.SIGKILL in launch("first", path)  # and not before its last part
    assert (path / "notes.json").exists()
    return path


def weights(folder: Path) -> dict[str, Tensor]:
    """Those that are tested, and those in training where these are other ones."""
    both = {file: folder / "0" / f"{file}.safetensors" for file in ("last", "last_trained")}
    return {
        f"{file}.{name}": tensor
        for file, path in both.items()
        if path.exists()
        for name, tensor in load_file(path).items()
    }


def history(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "0" / "history.jsonl").read_text().splitlines()]


def assert_equal_to_rounding(found: Path, expected: Path) -> None:
    """Sums over samples in another order, float64: 12 steps of 1e-16 each, amplified by less than 1e3. With parts
    weighted alike, or clipping before the mean, the weights differ by more than 1e-3."""
    for name, tensor in weights(expected).items():
        torch.testing.assert_close(weights(found)[name], tensor, rtol=1e-12, atol=1e-12)
    for here, there in zip(history(found), history(expected), strict=True):
        assert here["test_accuracy"] == there["test_accuracy"]
        assert [here["train_loss"], here["test_loss"]] == pytest.approx(
            [there["train_loss"], there["test_loss"]], rel=1e-12
        )


def test_two_ranks_equal_one_also_where_batches_do_not_divide(folder: Path, tmp_path: Path) -> None:
    run(ONE_RANK, tmp_path)
    assert {record["world_size"] for record in history(folder / "whole")} == {2}
    assert_equal_to_rounding(folder / "whole", tmp_path)


def test_micro_batches_on_two_ranks_train_as_whole_batches_on_one(folder: Path, tmp_path: Path) -> None:
    run(ONE_RANK, tmp_path)
    assert_equal_to_rounding(folder / "accumulated", tmp_path)


def test_the_bound_on_the_norm_and_the_average_act(folder: Path, tmp_path: Path) -> None:
    both = weights(folder / "whole")
    names = [name.removeprefix("last.") for name in both if name.startswith("last.")]
    assert not any(torch.equal(both[f"last.{name}"], both[f"last_trained.{name}"]) for name in names)
    settings = SETTINGS.model_copy(update={"clip_norm": None})
    retrain(lambda seed: UnevenTask(), built, SCHEDULE, settings, ONE_RANK, tmp_path)
    trained = [f"last_trained.{name}" for name in names]
    assert max(relative_error(weights(tmp_path)[name], both[name]) for name in trained) > 1e-3


def test_one_rank_goes_on_where_two_were_killed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "cut", tmp_path / "cut")
    assert len(history(tmp_path / "cut")) == 2
    run(ONE_RANK, tmp_path / "cut")
    assert [record["world_size"] for record in history(tmp_path / "cut")] == [2, 2, 1]
    assert_equal_to_rounding(tmp_path / "cut", folder / "whole")


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(folder: Path) -> None:
    assert launch("resume", folder) == [0, 0]
    expected, found = weights(folder / "whole"), weights(folder / "cut")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    losses = [[record["test_loss"] for record in history(folder / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]


def test_batch_norm_over_ranks_is_told(folder: Path) -> None:
    """On CPUs its statistics are those of each rank's part, so that ranks cannot equal one process."""
    (told,) = [note for note in json.loads((folder / "notes.json").read_text()) if "batch-norm" in note]
    assert "depends on the number of ranks" in told
    assert weights(folder / "norm")["last.8.weight"].shape == (CLASSES, 4)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
