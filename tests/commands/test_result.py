"""The result of a search: the candidate that does best on fresh seeds, its files, and a judging that goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from launching import run_jobs
from own_tasks import Blobs
from torch import Tensor

import fds_dist
from fds_dist.build import build
from fds_dist.cli import main
from fds_dist.commands import DONE
from fds_dist.common.faults import UserError
from fds_dist.config import read_draft
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.run import InnerRun
from fds_dist.outer import judge as judge_module
from fds_dist.outer.judge import Judge, judging
from fds_dist.tracking.verdict import JudgedCandidate, Verdict

CONFIG: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"epochs": 2},
    "hyperparameters": {
        "lr": {"init": 0.001, "step": 0.7, "buckets": 2, "scale": "log"},
        "momentum": {"init": 0.5, "step": 0.5, "scale": "log"},
    },
    "outer": {
        **{"optimizer": "adam", "steps": 3, "retreat": False, "tolerance": 0},
        **{"average": 2, "judge_seeds": 2},
    },
    "name": "run",
}
HORIZON, SEEDS = 8, 2
NAMES = ["average", "best", "last", "start"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def optimize(config: Any = None, *overrides: str, **arguments: Any) -> fds_dist.RunResult:
    return fds_dist.optimize(config, overrides, progress=False, **arguments)


def content(folder: Path | str, name: str = "judged.json") -> Any:
    return json.loads((Path(folder) / name).read_text())


def results(folder: Path | str) -> dict[str, bytes]:
    """The files of the result, which hold no time and nothing of the ranks."""
    names = ["schedule.json", "judged.json", *(f"schedule_{name}.json" for name in NAMES[:3])]
    return {name: (Path(folder) / name).read_bytes() for name in names}


def numbers(schedule: fds_dist.Schedule) -> list[float]:
    return [value for row in schedule.values.values() for value in row]  # type: ignore[misc]


# --- what is judged, and what follows ---


def test_the_candidate_with_the_lowest_judged_loss_is_the_result() -> None:
    result = optimize(CONFIG)
    assert result.verdict is not None
    schedules = {
        **{"average": result.average_schedule, "best": result.best_schedule, "last": result.last_schedule},
        "start": result.schedule.from_json(result.schedule.to_json()) if result.verdict.result == "start" else None,
    }
    judged = content(result.run_dir)["candidates"]
    assert list(judged) == NAMES
    lowest = min(NAMES, key=lambda name: judged[name]["val_loss"])
    assert (result.verdict.result, result.schedule) == (lowest, schedules[lowest])
    assert judged[lowest]["val_loss"] < judged["start"]["val_loss"]  # it has learned
    for name, file in (("average", "average_schedule"), ("best", "best_schedule"), ("last", "last_schedule")):
        assert fds_dist.load_schedule(result.run_dir / f"schedule_{name}.json") == getattr(result, file)
    assert fds_dist.load_schedule(result.run_dir) == result.schedule
    loaded = fds_dist.load_run(result.run_dir)
    for field in ("schedule", "average_schedule", "best_schedule", "last_schedule", "verdict"):
        assert getattr(loaded, field) == getattr(result, field)


def test_a_judged_loss_is_that_of_an_inner_run_on_the_fresh_seed() -> None:
    """Against the estimator forward, whose validation loss comes from a step with tangents."""
    result = optimize(CONFIG)
    built = build(read_draft(CONFIG), LaunchEnvironment())
    assert result.last_schedule is not None and result.verdict is not None
    values = built.problem.space.pack({name: list(row) for name, row in result.last_schedule.values.items()})
    runs = [InnerRun(judging(built.problem), values, seed, HORIZON) for seed in range(SEEDS)]
    losses = [ESTIMATORS["forward"](run).val_loss for run in runs]
    judged = result.verdict.candidates["last"]
    assert judged.val_losses == pytest.approx(losses, rel=1e-6)  # two orders of one float32 sum
    assert judged.val_loss == sum(judged.val_losses) / SEEDS
    assert judged.val_loss_error == pytest.approx(abs(losses[0] - losses[1]) / 2, rel=1e-4)
    assert losses[0] != losses[1]


def test_equal_candidates_are_trained_once() -> None:
    """After one outer step the best run is the start, and the average of one update the last values."""
    result = optimize(CONFIG, "outer.steps=1")
    lines = (result.run_dir / "judge.jsonl").read_text().splitlines()
    assert len(lines) == 2 * SEEDS
    assert result.verdict is not None
    candidates = result.verdict.candidates
    assert candidates["average"].val_losses == candidates["last"].val_losses
    assert candidates["best"].val_losses == candidates["start"].val_losses


def test_nothing_is_judged_where_nothing_is_asked_for() -> None:
    averaged = optimize(CONFIG, "outer.judge_seeds=0")
    assert averaged.schedule == averaged.average_schedule != averaged.last_schedule
    last = optimize(CONFIG, "outer.judge_seeds=0", "outer.average=1", "name=last")
    assert last.schedule == last.last_schedule and last.average_schedule is None
    assert last.verdict is None
    for run in (averaged, last):
        assert not (run.run_dir / "judged.json").exists() and not (run.run_dir / "judge.jsonl").exists()
    assert not (last.run_dir / "schedule_average.json").exists()


def test_horizons_differ_and_all_candidates_train_for_the_longest() -> None:
    result = optimize(CONFIG, "inner={epochs: [2.0, 1.0]}", "outer.steps=2")
    assert result.verdict is not None and result.verdict.horizon == HORIZON
    assert result.last_schedule is not None and result.last_schedule.horizon == 4
    best = result.best_schedule
    assert best is not None
    trained = {tuple(numbers_of(record.hyperparameters)): record.horizon for record in result.history}
    assert best.horizon == trained[tuple(numbers(best))]


def numbers_of(hyperparameters: Any) -> list[float]:
    return [value for row in hyperparameters.values() for value in row]


@pytest.mark.parametrize("override", ["outer.tolerance=9", "outer.timeout=1e-9"])
def test_a_search_that_ends_early_is_judged_too(override: str) -> None:
    result = optimize(CONFIG, override)
    assert len(result.history) == 1
    assert result.verdict is not None


def test_a_stop_is_judged_too() -> None:
    class Enough(fds_dist.Callback):
        def outer_step(self, record: fds_dist.OuterRecord) -> fds_dist.Stop:
            return fds_dist.Stop("enough")

    assert optimize(CONFIG, callbacks=[Enough()]).verdict is not None


def test_a_stop_before_the_first_outer_step_leaves_nothing_to_judge() -> None:
    class AtOnce(fds_dist.Callback):
        def run_start(self, run: fds_dist.RunStart) -> fds_dist.Stop:
            return fds_dist.Stop()

    result = optimize(CONFIG, callbacks=[AtOnce()])
    assert result.verdict is None and not (result.run_dir / "judge.jsonl").exists()


# --- runs that diverge ---


class Exploding(Blobs):
    """Its loss grows without end from a learning rate of 1 on."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 1e6 * super().loss(output, target) ** 2


def test_a_run_that_diverges_counts_as_infinite() -> None:
    overrides = ["hyperparameters.lr.init=1e-9", "hyperparameters.lr.step=60", "outer.steps=1"]
    result = optimize({key: CONFIG[key] for key in CONFIG if key != "task"}, *overrides, task=Exploding())
    assert result.verdict is not None
    last = result.verdict.candidates["last"]
    assert last.val_loss == math.inf and last.lost == SEEDS and last.val_loss_error is None
    assert str(last) == "diverged on 2 of 2 seeds"
    assert content(result.run_dir)["candidates"]["last"]["val_losses"] == [None, None]
    assert result.verdict.result in ("best", "start")  # the same values
    assert numbers(result.schedule) == [1e-9, 1e-9, 0.5]
    assert fds_dist.load_run(result.run_dir).verdict == result.verdict


def test_of_candidates_that_diverged_the_one_that_did_so_less_often_comes_first() -> None:
    lost = JudgedCandidate.of([math.inf, math.inf], [None, None])
    half = JudgedCandidate.of([math.inf, 1.0], [None, 0.5])
    assert Verdict.of(2, 10, {"average": lost, "last": half, "start": lost}).result == "last"
    assert (half.val_loss, half.val_loss_error, half.val_accuracy) == (math.inf, None, None)


def test_the_words_of_a_verdict() -> None:
    start, better = JudgedCandidate.of([0.35, 0.37], [0.89, 0.9]), JudgedCandidate.of([0.06, 0.061], [0.98, 0.99])
    verdict = Verdict.of(2, 10, {"last": better, "start": start})
    headline = "from 89.5% to 98.5% validation accuracy (val loss 0.36 to 0.0605), judged on 2 fresh seeds"
    assert verdict.headline == headline
    assert str(better) == "val loss 0.0605 ± 0.0005, val accuracy 98.5%"
    assert verdict.figures["judged/last/val_loss"] == 0.0605
    worse = Verdict.of(2, 10, {"last": start, "start": better})
    assert worse.headline.startswith("no learned values did better than the start (val loss 0.0605")


# --- a judging goes on ---


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third judged run is cut off, as by Ctrl-C."""
    train, calls = Judge._train, []

    def stopping(self: Judge, *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(self, *arguments)

    monkeypatch.setattr(Judge, "_train", stopping)


def test_a_judging_that_was_cut_off_goes_on(cut_off: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        fds_dist.optimize(CONFIG)
    out = capsys.readouterr().out
    assert "judging 4 values on 2 fresh seeds: 8 runs" in out
    assert "interrupted; message: stopped while judging" in out and "--resume runs/run" in out
    assert not Path("runs/run/judged.json").exists()
    assert len(Path("runs/run/judge.jsonl").read_text().splitlines()) == 2
    assert fds_dist.load_run("runs/run").schedule == fds_dist.load_run("runs/run").average_schedule  # so far

    resumed = fds_dist.optimize(resume="runs/run")
    assert "6 runs" in capsys.readouterr().out
    assert resumed.verdict is not None
    whole = optimize(CONFIG, "name=whole")
    assert results(resumed.run_dir) == results(whole.run_dir)


def test_a_judged_search_says_that_nothing_is_left_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    first = optimize(CONFIG)
    before = {str(path): path.read_bytes() for path in first.run_dir.rglob("*") if path.is_file()}
    assert fds_dist.optimize(resume=first.run_dir) == first
    assert capsys.readouterr().out.startswith("note: nothing left to do: all 3 outer steps are done")
    assert {str(path): path.read_bytes() for path in first.run_dir.rglob("*") if path.is_file()} == before


def test_a_finished_search_is_judged_later() -> None:
    whole = optimize(CONFIG, "name=whole")
    run = optimize(CONFIG, "outer.judge_seeds=0", "outer.average=1")
    later = optimize(None, "outer.judge_seeds=2", "outer.average=2", resume=run.run_dir)
    assert results(later.run_dir) == results(whole.run_dir)


def test_a_search_that_goes_on_is_judged_anew() -> None:
    whole = optimize(CONFIG, "name=whole")
    run = optimize(CONFIG, "outer.steps=2")
    further = optimize(None, "outer.steps=3", resume=run.run_dir)
    assert results(further.run_dir) == results(whole.run_dir)


def test_runs_that_were_judged_for_another_horizon_do_not_count() -> None:
    run = optimize(CONFIG, "inner.epochs=1")
    again = optimize(None, "inner.epochs=2", "outer.steps=4", resume=run.run_dir)
    settings = {line["setting"] for line in map(json.loads, (run.run_dir / "judge.jsonl").read_text().splitlines())}
    assert len(settings) == 2
    assert again.verdict is not None and again.verdict.horizon == HORIZON


# --- ranks ---


def test_ranks_share_out_the_judging_to_the_same_bits(tmp_path: Path) -> None:
    alone = optimize(CONFIG)
    jobs = [{"config": CONFIG}, {"config": CONFIG, "overrides": ["mesh.data=2", "name=split"]}]
    first, second = run_jobs(tmp_path / "two", 2, jobs)
    assert first == second and not any("raised" in end for end in first)
    assert results(tmp_path / "two/runs/run") == results(alone.run_dir)
    lines = [(alone.run_dir / "judge.jsonl"), tmp_path / "two/runs/run/judge.jsonl"]
    assert len({path.read_text() for path in lines}) == 1

    # Along `data` the sums have another order, and batch-norm and eight steps pass a float32 difference on.
    split, whole = content(tmp_path / "two/runs/split")["candidates"], content(alone.run_dir)["candidates"]
    for name in NAMES:
        assert split[name]["val_losses"] == pytest.approx(whole[name]["val_losses"], rel=1e-4)


# --- whoever takes the result ---


def test_the_result_is_what_the_other_commands_take(capsys: pytest.CaptureFixture[str]) -> None:
    run = optimize(CONFIG)
    for name in ("result", "average", "best", "last"):
        capsys.readouterr()
        assert main(["export", "runs/run", "--format", "json", "--schedule", name]) == DONE
        file = "schedule.json" if name == "result" else f"schedule_{name}.json"
        assert capsys.readouterr().out == (run.run_dir / file).read_text()
    assert fds_dist.export(run, "json") == run.schedule.to_json()
    with pytest.raises(UserError, match="--schedule: 'mean' is unknown; expected one of result, average, best, last"):
        fds_dist.export(run, schedule="mean")
    for name in ("result", "last"):
        done = fds_dist.retrain(run, ["epochs=1", f"schedule={name}"], progress=False)
        assert done.folder.name == ("retrain" if name == "result" else "retrain-last")
        expected = (run.schedule if name == "result" else run.last_schedule).stretch(4).at(3)  # type: ignore[union-attr]
        assert content(done.folder / "0", "history.jsonl")["hyperparameters"]["lr"] == expected["lr"]


def test_the_closing_lines_and_the_report_say_which_is_which(capsys: pytest.CaptureFixture[str]) -> None:
    run = fds_dist.optimize(CONFIG)
    assert run.verdict is not None
    closing = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("finished"))
    assert f"gained: {run.verdict.headline}" in closing
    for name in NAMES:
        assert f"{name} {run.verdict.candidates[name]}" in closing
    assert "schedule_average.json" in closing
    page = (run.run_dir / "report" / "index.html").read_text()  # `fds_dist.report` writes the same
    assert "The schedule to use" in page and f"{run.verdict.result} (result)" in page


def test_judges_meet_so_that_no_rank_waits_for_long() -> None:
    assert judge_module.blocks_of(8) == 8
    assert judge_module.blocks_of(1000) == 100
    assert judge_module.blocks_of(150) == 75
