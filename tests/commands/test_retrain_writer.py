"""A retraining's files are written in a thread: training goes on meanwhile, and nothing is lost at its end."""

from __future__ import annotations

import errno
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from launching import PATIENCE
from problems import ONE_RANK, image_task, mlp
from torch import Tensor

from fds_dist.commands.retrain import ddp
from fds_dist.commands.retrain.checkpoints import read_state, write_state
from fds_dist.commands.retrain.records import Block
from fds_dist.commands.retrain.reporting import Reporter
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.commands.retrain.trainer import retrain
from fds_dist.common.files import WriteFailed
from fds_dist.schedule.schedule import Schedule

SCHEDULE = Schedule(15, {"lr": (0.3, 0.1), "momentum": (0.9,)}, optimizer={"name": "sgd", "nesterov": False})
EPOCHS = 3
"""Of 5 steps, after each of which the state is saved."""


class Steps(Reporter):
    """Notes each step that is taken."""

    def __init__(self) -> None:
        self.news, self.last = threading.Condition(), 0

    def block(self, block: Block) -> None:
        with self.news:
            self.last = block.step
            self.news.notify_all()

    def reach(self, step: int) -> bool:
        """Whether the step is taken while the caller waits."""
        with self.news:
            return self.news.wait_for(lambda: self.last >= step, PATIENCE)


def train(folder: Path, steps: Steps) -> None:
    task, settings = image_task(mlp), RetrainSettings(epochs=EPOCHS)
    retrain(lambda seed: task, task.build_model, SCHEDULE, settings, ONE_RANK, folder, [steps])


def test_training_goes_on_while_a_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, goes_on = Steps(), list[bool]()

    def write(path: Path, tensors: Mapping[str, Tensor], progress: dict[str, Any]) -> None:
        epochs = len(progress["records"])
        if epochs < EPOCHS:
            goes_on.append(steps.reach(5 * epochs + 3))
        write_state(path, tensors, progress)

    monkeypatch.setattr(ddp, "write_state", write)
    train(tmp_path, steps)
    assert goes_on == [True] * (EPOCHS - 1)
    state = read_state(tmp_path / "0" / "state.safetensors")
    assert state is not None
    assert len(state[1]["records"]) == EPOCHS
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


@pytest.mark.parametrize("epoch", range(1, EPOCHS + 1))
def test_what_cannot_be_written_ends_the_retraining(
    epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps()

    def write(path: Path, tensors: Mapping[str, Tensor], progress: dict[str, Any]) -> None:
        if len(progress["records"]) == epoch:
            raise WriteFailed(errno.ENOSPC, "No space left on device", str(path))
        write_state(path, tensors, progress)

    monkeypatch.setattr(ddp, "write_state", write)
    with pytest.raises(WriteFailed, match=r"state\.safetensors: No space left on device"):
        train(tmp_path, steps)
    assert steps.last <= 5 * min(epoch + 1, EPOCHS)  # at the next save at the latest
    assert not (tmp_path / "summary.json").exists()
    monkeypatch.undo()
    train(tmp_path, steps)
    assert steps.last == 5 * EPOCHS
