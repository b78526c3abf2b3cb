"""A signal in the middle of an outer step: all ranks save a checkpoint after the same step, and go on from there."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from launching import Ended, run_jobs, start_ranks
from signalled_tasks import write_plan

import fds_dist
from fds_dist.inner.checkpoint_files import read_manifest

CONFIG: dict[str, Any] = {
    "task": {"name": "signalled_tasks:signalled", "plan": "plan.json"},
    "inner": {"epochs": 5},  # 20 steps
    "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 3}, "momentum": {"init": 0.5, "step": 0.1}},
    "outer": {"optimizer": "sign", "steps": 2, "judge_seeds": 0},
    "consistency": {"witness": "off", "every": 4},
}
INT, TERM = signal.SIGINT, signal.SIGTERM
MOMENT = (1, 2, 1)
"""Before the tenth step of outer step 1."""

Numbers = list[tuple[Any, ...]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; SIGINT and SIGTERM raise KeyboardInterrupt, as in the command line."""
    monkeypatch.chdir(tmp_path)
    usual = {number: signal.signal(number, signal.default_int_handler) for number in (INT, TERM)}
    yield tmp_path
    for number, handler in usual.items():
        signal.signal(number, handler)


def interrupted(name: str, **changes: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        fds_dist.optimize({**CONFIG, "name": name, **changes}, progress=False)


def numbers(name: str) -> Numbers:
    """What each outer step has computed."""
    lines = map(json.loads, Path(f"runs/{name}/history.jsonl").read_text().splitlines())
    return [(line["hyperparameters"], line["hypergradients"], line["val_loss"]) for line in lines]


def resumed(name: str) -> Numbers:
    Path("plan.json").unlink()
    fds_dist.optimize(resume=f"runs/{name}", progress=False)
    return numbers(name)


def whole(**changes: Any) -> Numbers:
    """Of a run that gets no signal."""
    fds_dist.optimize({**CONFIG, "name": "whole", **changes}, progress=False)
    return numbers("whole")


def kept(name: str) -> list[int]:
    """The inner steps of the checkpoints within an outer step."""
    manifests = Path(f"runs/{name}/checkpoints").glob("inner*/manifest.json")
    return sorted(read_manifest(manifest.parent).step for manifest in manifests)


@pytest.mark.parametrize("number", [INT, TERM])
def test_one_process_saves_after_the_step_in_which_the_signal_comes(number: signal.Signals) -> None:
    write_plan(Path("plan.json"), MOMENT, rank0=[(number, 0)])
    interrupted("run")
    assert (kept("run"), len(numbers("run"))) == ([10], 1)
    assert resumed("run") == whole()
    assert signal.getsignal(number) is signal.default_int_handler


@pytest.mark.parametrize("changes", [{"estimator": "reverse"}, {"estimator": "greedy", "greedy": {"discount": 0.5}}])
def test_reverse_mode_and_greedy_save_in_that_step_too(changes: dict[str, Any]) -> None:
    write_plan(Path("plan.json"), MOMENT, rank0=[(TERM, 0)])
    interrupted("run", **changes)
    assert (kept("run"), len(numbers("run"))) == ([10], 1)
    assert resumed("run") == whole(**changes)


def test_an_echo_of_the_signal_does_not_count_and_a_second_one_leaves_at_once() -> None:
    write_plan(Path("plan.json"), MOMENT, rank0=[(INT, 0.05), (TERM, 0)])
    interrupted("echo")
    assert kept("echo") == [10]
    write_plan(Path("plan.json"), MOMENT, rank0=[(INT, 2.1), (TERM, 0)])
    interrupted("second")
    assert kept("second") == []


def test_without_grace_the_first_signal_leaves_at_once() -> None:
    write_plan(Path("plan.json"), MOMENT, rank0=[(TERM, 0)])
    interrupted("run", checkpoint={"grace": 0})
    assert kept("run") == []


def test_a_signal_after_the_last_inner_step_counts_when_the_outer_step_is_saved() -> None:
    write_plan(Path("plan.json"), (0, 4, 3), rank0=[(TERM, 0)])
    interrupted("run", checkpoint={"every_seconds": 1e9})
    assert (kept("run"), len(numbers("run"))) == ([], 1)
    assert resumed("run") == whole()


def test_time_that_is_up_leaves_without_a_checkpoint() -> None:
    """The step in which the signal comes takes longer than the grace period."""
    write_plan(Path("plan.json"), MOMENT, rank0=[(TERM, 60)])
    interrupted("run", checkpoint={"grace": 0.5})
    assert kept("run") == []


# --- several ranks ---

TWO: dict[str, Mapping[str, Any]] = {"tangent": {}, "data": {"mesh": {"data": 2}}}


def run(ranks: int, *line: str) -> list[Ended]:
    return start_ranks(["-m", "fds_dist", *line], ranks, [Path.cwd()])


def two_interrupted(within: bool = True, **changes: Any) -> list[Ended]:
    """How two ranks end that run until the planned signal, `within` outer step 1 or when that is saved."""
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "name": "run", **changes}))
    ended = run(2, "optimize", "config.yaml")
    assert [(rank.status, rank.err) for rank in ended] == [(130, "")] * 2
    said = ended[0].out.splitlines()
    if within:
        assert f"saved at inner step {kept('run')[-1]} of 20" in ended[0].out
    else:
        assert (kept("run"), len(numbers("run"))) == ([], 2)
    assert said[-2].startswith(f"interrupted; message: stopped in outer step {1 if within else 2}; ")
    assert re.fullmatch(r"to continue: .*fds.dist optimize --resume runs/run", said[-1])
    return ended


def test_two_ranks_save_after_the_same_step_though_only_one_gets_the_signal() -> None:
    write_plan(Path("plan.json"), MOMENT, rank1=[(TERM, 0)])
    two_interrupted()
    assert resumed("run") == whole()  # one process, to the same bits


# Slow: which rank saves what is settled before the estimator; reverse mode saves in a test below.
@pytest.mark.parametrize("estimator", ["forward", pytest.param("reverse", marks=pytest.mark.slow)])
def test_each_replica_saves_where_it_is_and_goes_on_from_there(estimator: str) -> None:
    replicas = {"mesh": {"replica": 2}, "estimator": estimator}
    # Replica 1 of 2 has the batches of outer step 3 in outer step 1. It alone gets the signal.
    write_plan(Path("plan.json"), (3, 2, 1), rank1=[(TERM, 0)])
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "name": "run", **replicas}))
    ended = run(2, "optimize", "config.yaml")
    assert ended[1].status == 130
    assert kept("run") == [10]
    Path("plan.json").unlink()
    jobs = [{"resume": str(Path("runs/run").resolve())}, {"config": {**CONFIG, "name": "whole", **replicas}}]
    run_jobs(Path("jobs").resolve(), 2, jobs)
    assert numbers("run") == numbers("../jobs/runs/whole")


@pytest.mark.slow
@pytest.mark.parametrize("axis", TWO)
@pytest.mark.parametrize("moment", range(10))
def test_two_ranks_go_on_to_the_same_bits_from_20_moments(axis: str, moment: int) -> None:
    signals = {f"rank{rank}": [(TERM, 0)] for rank in ((0,), (1,), (0, 1))[moment % 3]}
    write_plan(Path("plan.json"), (1, moment // 2, moment % 4), **signals)
    # Of the axis `tangent` they meet every 4 steps, the last time after the 17th.
    two_interrupted(within=(axis, moment) != ("tangent", 9), **TWO[axis])
    Path("plan.json").unlink()
    for line in (("--resume", "runs/run"), ("config.yaml", "name=whole")):
        assert [(rank.status, rank.err) for rank in run(2, "optimize", *line)] == [(0, "")] * 2
    assert numbers("run") == numbers("whole")


def test_a_rank_that_waits_for_another_in_vain_says_how_to_go_on() -> None:
    """Rank 1 is busy for good; rank 0, which waits for it within a library, hears the signal nevertheless."""
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "name": "run", "checkpoint": {"grace": 1}}))
    write_plan(Path("plan.json"), MOMENT, rank0=[(TERM, 0)], rank1=[(signal.SIGCONT, 20)])
    first, _ = run(2, "optimize", "config.yaml")
    assert (first.status, kept("run")) == (130, [])
    where = "stopped in outer step 1, without a checkpoint: another rank does not answer"
    assert re.fullmatch(rf"fds-dist: interrupted: {where}; to continue: .*optimize --resume runs/run\n", first.err)
