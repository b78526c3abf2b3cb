"""The commands on a GPU, and what is kept of a run there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_cases import DEVICE, NETWORKS, images

import fds_dist

pytestmark = pytest.mark.gpu

TINY: dict[str, Any] = {
    "task": {"name": "digits", "batch_size": 32},
    "model": {"name": "lenet"},
    "inner": {"steps": 6},
    "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 2}, "momentum": {"init": 0.5, "step": 0.1}},
    "outer": {"optimizer": "sign", "steps": 2, "tolerance": 1e-9},
    "device": DEVICE.type,
    "name": "run",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_search_its_check_its_verification_and_its_retraining() -> None:
    built, report = fds_dist.check(TINY)
    assert built.problem.device.type == DEVICE.type
    assert report.total_seconds
    assert fds_dist.verify(TINY, steps=4).verification.passed
    result = fds_dist.optimize(TINY, progress=False)
    assert len(result.history) == 2
    assert all(number for record in result.history for row in record.hypergradients.values() for number in row)
    done = fds_dist.retrain(result, ["epochs=1", "seeds=1"], progress=False)
    assert done.results[0].final.test_loss < 3.0  # ten classes: log(10) = 2.3 before training


def test_bench_measures() -> None:
    report = fds_dist.bench({**TINY, "task": {"name": "digits", "batch_size": 16}}, seconds=10)
    assert report.plain_seconds > 0
    assert report.networks
    if DEVICE.type == "cuda":
        assert torch.cuda.get_device_name() in report.device


def test_bf16_and_a_stream_of_batches() -> None:
    inputs, labels = images(64, "train")
    data = torch.utils.data.TensorDataset(inputs.float(), labels)
    task = fds_dist.task_from_datasets(data, val=data, batch_size=16, stream=True, workers=1)
    asked = {key: value for key, value in TINY.items() if key not in ("task", "model")}
    asked["inner"] = {"steps": 6, "precision": "bf16"}
    result = fds_dist.optimize(asked, task=task, model=NETWORKS["lenet"](), progress=False)
    assert len(result.history) == 2


@pytest.mark.parametrize("estimator", ["forward", "reverse"])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(estimator: str) -> None:
    switch = Path("switch")
    asked = {
        **TINY,
        "task": {"name": "own_tasks:cut", "switch": str(switch.absolute())},
        "inner": {"epochs": 2},
        "checkpoint": {"every_seconds": 1e-6},  # after every step
        "estimator": estimator,
        "outer": {"optimizer": "sign", "steps": 3, "tolerance": 1e-9},
    }
    del asked["model"]
    whole = fds_dist.optimize(asked, ["name=whole"], progress=False)
    switch.write_text("KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        fds_dist.optimize(asked, progress=False)
    inner = list(Path("runs/run/checkpoints").glob("inner-*"))
    assert bool(inner) == (estimator == "forward")
    switch.unlink()
    resumed = fds_dist.optimize(resume="runs/run", progress=False)
    assert [record.hypergradients for record in resumed.history] == [record.hypergradients for record in whole.history]
    assert resumed.schedule == whole.schedule
