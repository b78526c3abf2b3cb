"""A retraining that a signal ends within an epoch goes on from the step at which it was saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launching import start_ranks
from safetensors.torch import load_file
from signalled_tasks import write_plan

import fds_dist
from fds_dist.commands.retrain.checkpoints import read_state
from fds_dist.commands.retrain.step_terms import StepTerms

CONFIG = {
    "task": {"name": "signalled_tasks:signalled", "plan": "plan.json"},
    "inner": {"epochs": 1, "ema": 0.9},  # 4 steps
    "hyperparameters": {"lr": {"init": 0.05, "buckets": 2}, "momentum": 0.9},
    "outer": {"steps": 1, "judge_seeds": 0},
    "consistency": {"witness": "off"},
    "name": "run",
}
EPOCHS = ["epochs=3"]
MOMENT = (0, 1, 2)
"""Before the seventh step, the third of the second epoch."""


@pytest.fixture(autouse=True)
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A current folder with a run; SIGTERM raises KeyboardInterrupt, as in the command line."""
    monkeypatch.chdir(tmp_path)
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    fds_dist.optimize(CONFIG, progress=False)
    yield
    signal.signal(signal.SIGTERM, usual)


def result_of(line: str = "seed=0") -> tuple[list[object], dict[str, torch.Tensor]]:
    """The records, without their times, and the last weights."""
    (result,) = fds_dist.retrain("runs/run", [*EPOCHS, line], progress=False).results
    return [replace(record, seconds=0.0, world_size=1) for record in result.epochs], load_file(
        result.folder / "last.safetensors"
    )


def assert_goes_on_to_the_same_bits() -> None:
    Path("plan.json").unlink(missing_ok=True)
    records, weights = result_of()
    whole_records, whole_weights = result_of("restart=true")
    assert records == whole_records
    assert all(torch.equal(weights[name], whole_weights[name]) for name in whole_weights)


def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that any retraining takes from now on, by the number of those before."""
    steps, usual = list[int](), StepTerms.of

    def of(terms: StepTerms, batch: Any) -> Any:
        steps.append(terms.driver.last_epoch)
        return usual(terms, batch)

    monkeypatch.setattr(StepTerms, "of", of)
    return steps


def test_it_saves_after_the_step_in_which_the_signal_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(Path("plan.json"), MOMENT, rank0=[(signal.SIGTERM, 0)])
    with pytest.raises(KeyboardInterrupt):
        result_of()
    steps = steps_taken(monkeypatch)
    assert_goes_on_to_the_same_bits()
    assert steps == [*range(7, 12), *range(12)]


def test_a_run_that_is_killed_goes_on_from_where_its_time_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(Path("runs/run/config.yaml").read_text())
    config["checkpoint"] |= {"every_seconds": 1e-9, "grace": 0}
    Path("runs/run/config.yaml").write_text(yaml.safe_dump(config))
    write_plan(Path("plan.json"), MOMENT, rank0=[(signal.SIGTERM, 0)])
    with pytest.raises(KeyboardInterrupt):  # at once
        result_of()
    steps = steps_taken(monkeypatch)
    assert_goes_on_to_the_same_bits()
    assert steps == [*range(6, 12), *range(12)]


def last_weights(*lines: str) -> dict[str, torch.Tensor]:
    """Of a retraining on two ranks that nobody disturbs."""
    ended = start_ranks(["-m", "fds_dist", "retrain", "runs/run", *EPOCHS, *lines], 2, [Path.cwd()])
    assert [rank.status for rank in ended] == [0, 0], ended
    return load_file("runs/run/retrain/0/last.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_two_ranks_save_after_the_same_step_though_only_one_gets_the_signal(engine: str) -> None:
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    lines = [f"engine={engine}", "ema=null"]
    write_plan(Path("plan.json"), MOMENT, rank1=[(signal.SIGTERM, 0)])
    interrupted = start_ranks(["-m", "fds_dist", "retrain", "runs/run", *EPOCHS, *lines], 2, [Path.cwd()])
    assert [rank.status for rank in interrupted] == [130, 130], interrupted
    assert [line for rank in interrupted for line in rank.err.splitlines() if line.startswith("fds-dist")] == []
    assert "saved after step 7" in interrupted[0].out
    Path("plan.json").unlink()
    weights, whole = last_weights(*lines), last_weights(*lines, "restart=true")
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_deepspeed_goes_on_from_where_its_time_was_due() -> None:
    pytest.importorskip("deepspeed")
    config = yaml.safe_load(Path("runs/run/config.yaml").read_text())
    config["checkpoint"] |= {"every_seconds": 1e-9, "grace": 0}
    Path("runs/run/config.yaml").write_text(yaml.safe_dump(config))
    lines = ["engine=deepspeed", "ema=null"]
    write_plan(Path("plan.json"), MOMENT, rank1=[(signal.SIGKILL, 0)])
    killed = start_ranks(["-m", "fds_dist", "retrain", "runs/run", *EPOCHS, *lines], 2, [Path.cwd()])
    assert [rank.status for rank in killed] == [1, -signal.SIGKILL]
    state = read_state(Path("runs/run/retrain/0/state.safetensors"))
    assert state is not None
    assert state[1]["part"]["steps"] in (1, 2)  # of the second epoch; the save after the sixth step may be cut off
    Path("plan.json").unlink()
    weights, whole = last_weights(*lines), last_weights(*lines, "restart=true")
    assert all(torch.equal(weights[name], whole[name]) for name in whole)
