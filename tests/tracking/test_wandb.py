"""Weights & Biases as a mirror: what its file holds, and that nothing it lacks stops a run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from events import Recorder, inner_block, outer_record, run_end, run_start, whole_run, write_history
from wandb_file import logged

import fds_dist
from fds_dist.commands.retrain.records import Block, EpochRecord, RetrainResult, SeedStart, Summary
from fds_dist.commands.retrain.reporting import WandbReporter
from fds_dist.common.faults import UserError
from fds_dist.tracking.records import outer_metrics
from fds_dist.tracking.trackers import Trackers
from fds_dist.tracking.wandb_run import WandbTracker
from fds_dist.tracking.wandb_session import WandbSession


def test_an_offline_wandb_file_holds_the_run(clean_environment: Path) -> None:
    pytest.importorskip("wandb")
    run_dir = clean_environment
    tracker = WandbTracker(WandbSession("offline", project="mine", group="sweep", tags=["a"]))
    config = {"seed": 0, "task": {"name": "digits", "api_key": "hidden-value"}, "auth_TOKEN": ["hidden-value"]}
    tracker.start(run_start(run_dir, **config))
    tracker.inner(inner_block(0, 100))
    tracker.outer(outer_record(0, hypergradients={"lr": [math.nan, 3.0], "momentum": [math.inf]}))
    tracker.inner(inner_block(1, 50))
    tracker.outer(outer_record(1))
    tracker.finish(run_end(run_dir))

    records, rows = logged(run_dir)
    inner = [row for row in rows if "inner_step" in row]
    outer = [row for row in rows if "outer_step" in row]
    assert [row["inner_step"] for row in inner] == [100, 250]  # counts on after the first horizon's 200 steps
    assert inner[0].items() >= {"inner/train_loss": 1.5, "inner/live_tangents": 4, "inner/lr": 0.3}.items()
    assert [row["outer_step"] for row in outer] == [0, 1]
    assert (
        outer[1].items()
        >= {
            "outer/val_loss": 2.3,
            "outer/val_accuracy": 0.11,
            "outer/seconds": 4.2,
            "outer/horizon": 200,
            "hyperparameter/lr/0": 0.1 + 0.2,
            "hyperparameter/lr/1": 1e-300,
            "hyperparameter/momentum/0": 0.5,
            "hypergradient/lr/0": -1.25,
            "hypergradient/lr/1": 3.0,
            "hypergradient/momentum/0": 1 / 3,
        }.items()
    )
    assert [name for name in outer[0] if name.startswith("hypergradient/")] == ["hypergradient/lr/1"]  # finite ones

    steps = {record.metric.glob_name: record.metric.step_metric for record in records if record.HasField("metric")}
    assert steps == {
        **{f"{kind}/*": "outer_step" for kind in ("outer", "hyperparameter", "hypergradient", "hypergradient_spread")},
        "step_size/*": "outer_step",
        "inner/*": "inner_step",
        "inner_curve/*": "step_in_horizon",
    }
    (run,) = [record.run for record in records if record.HasField("run")]
    shown = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert shown.items() >= {"seed": 0, "task": {"name": "digits", "api_key": "***"}, "auth_TOKEN": "***"}.items()
    assert (run.project, run.run_group, list(run.tags), run.display_name) == ("mine", "sweep", ["a"], "digits-1")
    updates = [update for record in records if record.HasField("summary") for update in record.summary.update]
    summary = {update.key: json.loads(update.value_json) for update in updates if update.key}
    assert summary.items() >= {"best_val_accuracy": 0.625, "best_val_loss": 0.75}.items()

    (table,) = run_dir.glob("wandb/offline-run-*/files/media/table/*.table.json")
    assert [row["schedule/path"] for row in rows if "schedule/path" in row] == [f"media/table/{table.name}"]
    content = json.loads(table.read_text())
    assert content["columns"] == ["hyperparameter", "bucket", "value", "start_fraction", "end_fraction"]
    assert content["data"] == [["lr", 0, 0.25, 0.0, 0.5], ["lr", 1, 0.5, 0.5, 1.0], ["momentum", 0, 0.9, 0.0, 1.0]]
    # the command line holds the secret too
    assert not any(b"hidden-value" in path.read_bytes() for path in run_dir.rglob("*") if path.is_file())


def test_a_whole_run_is_mirrored_as_its_history_has_it(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(clean_environment)
    config = {
        "task": {"name": "own_tasks:blobs"},
        "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 2}},
        "outer": {"optimizer": "sign", "steps": 2},
        "tracking": {"wandb": {"mode": "offline"}},
        "name": "run",
    }
    result = fds_dist.optimize(config, progress=False)
    records, rows = logged(clean_environment / "runs/run")
    outer = [row for row in rows if "outer_step" in row]
    assert len(outer) == len(result.history) == 2
    for row, record in zip(outer, result.history, strict=True):
        expected = {"outer_step": record.outer_step, **outer_metrics(record)}
        picture = {key for key in row if key.startswith("outer/schedule/")}
        assert row["outer/schedule/_type"] == "image-file"
        assert {key: row[key] for key in row if not key.startswith("_") and key not in picture} == expected
    inner = [row for row in rows if "inner_step" in row]
    assert [row["inner_step"] for row in inner] == list(range(1, 9))  # four steps for each of two outer steps
    assert all(row["inner/lr"] in (0.05, 0.05 + 0.02, 0.05 - 0.02) for row in inner)
    (run,) = [record.run for record in records if record.HasField("run")]
    shown = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert shown["hyperparameters"]["lr"] == {
        **config["hyperparameters"]["lr"],
        "size": 1,
        "shape": "constant",
        "scale": "linear",
        "per_group": False,
    }
    assert shown["seed"] == 0
    assert shown["outer"]["tolerance"] == 0.05  # the resolved config, with its defaults
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]


def test_a_resumed_run_keeps_its_id_and_counts_on(clean_environment: Path) -> None:
    pytest.importorskip("wandb")
    run_dir = clean_environment
    first = WandbTracker(WandbSession("offline"))
    first.start(run_start(run_dir))
    first.finish(run_end(run_dir, "interrupted"))
    run_id = (run_dir / "wandb_run_id.txt").read_text().strip()
    (old,) = run_dir.glob("wandb/offline-run-*")
    old.rename(run_dir / "earlier")
    write_history(run_dir / "history.jsonl", 2)
    second = WandbTracker(WandbSession("offline"))
    second.start(run_start(run_dir, first_outer_step=2, resumed=True))
    second.inner(inner_block(2, 10))
    second.finish(run_end(run_dir))
    records, rows = logged(run_dir)
    (run,) = [record.run for record in records if record.HasField("run")]
    assert run.run_id == run_id == (run_dir / "wandb_run_id.txt").read_text().strip()
    assert [row["inner_step"] for row in rows if "inner_step" in row] == [410]


ONLINE = """
import sys
from pathlib import Path
from fds_dist.tracking import OuterRecord, RunEnd, RunStart, Trackers
from fds_dist.tracking.console import ConsoleTracker
from fds_dist.tracking.wandb_run import WandbTracker
from fds_dist.tracking.wandb_session import WandbSession
run_dir = Path(sys.argv[1])
trackers = Trackers([ConsoleTracker(), WandbTracker(WandbSession("online", init_timeout=5))])
trackers.start(RunStart(run_dir, {}, 1, 0, 1, 1, "cpu", False))
trackers.outer(OuterRecord(0, 10, {"lr": [0.5]}, {"lr": [1.0]}, 2.0, None, 1.0, 1, {}))
trackers.finish(RunEnd("finished", "", None, 0, 2.0, None, run_dir))
"""


@pytest.mark.parametrize("account", [{}, {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}])
def test_online_without_an_account_or_a_server_goes_on_offline(
    clean_environment: Path, account: dict[str, str]
) -> None:
    pytest.importorskip("wandb")
    run_dir = clean_environment
    result = subprocess.run(
        [sys.executable, "-c", ONLINE, str(run_dir)],
        env=os.environ | account,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,  # never reached: the limit for a start is 5 s
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == 4  # start, one note, outer step, end
    (folder,) = run_dir.glob("wandb/offline-run-*")
    assert lines[1].startswith("note: wandb cannot go online")
    assert lines[1].endswith(f"wandb sync {folder}")
    assert any(row.get("outer/val_loss") == 2.0 for row in logged(run_dir)[1])


def test_without_wandb_there_is_one_note(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    other = Recorder()
    said = whole_run(Trackers([WandbTracker(WandbSession("online")), other]), clean_environment)
    (extra,) = [item for item in other.told if item not in said]
    assert "pip install wandb" in extra[1]
    assert list(clean_environment.iterdir()) == []


def test_disabled_wandb_is_not_even_imported(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    other = Recorder()
    assert whole_run(Trackers([WandbTracker(WandbSession()), other]), clean_environment) == other.told
    assert list(clean_environment.iterdir()) == []


def test_the_environment_decides_what_the_config_leaves_open(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "from-environment")
    monkeypatch.setenv("WANDB_NAME", "named")
    monkeypatch.setenv("WANDB_RUN_ID", "id-of-mine")
    tracker = WandbTracker(WandbSession())
    tracker.start(run_start(clean_environment))
    tracker.finish(run_end(clean_environment))
    (run,) = [record.run for record in logged(clean_environment)[0] if record.HasField("run")]
    assert (run.project, run.display_name, run.run_id) == ("from-environment", "named", "id-of-mine")


def test_an_unknown_mode_is_the_users_error(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"tracking\.wandb\.mode: 'on' is not a mode; expected online"):
        WandbTracker(WandbSession("on"))
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(UserError, match="WANDB_MODE: 'of' is not a mode"):
        WandbTracker(WandbSession())


# --- retraining ---


def epoch_record(seed: int, epoch: int) -> EpochRecord:
    return EpochRecord(seed, epoch, 10 * (epoch + 1), 0.5, 0.25, 0.75 + seed / 8, {"lr": 0.1}, 1.0, 1)


def retraining(folder: Path, seeds: range, first_epoch: int, summary: Summary | None) -> None:
    """What a reporter is told of two epochs of each seed, from `first_epoch` of the first on."""
    reporter = WandbReporter(WandbSession("offline", usual_job_type="retrain"), folder / "retrain", {"seed": 0})
    for seed in seeds:
        reporter.start(SeedStart(seed, seeds, 2, first_epoch, 20, 1, "cpu", folder))
        for epoch in range(first_epoch, 2):
            reporter.block(Block(seed, 10 * (epoch + 1), 20, math.nan if epoch else 0.5, {"lr": 0.1, "momentum": 0.5}))
            reporter.epoch(epoch_record(seed, epoch))
    reporter.finish(summary)


def test_a_retraining_is_one_run_with_each_seed_under_its_name(clean_environment: Path) -> None:
    pytest.importorskip("wandb")
    results = [RetrainResult(seed, clean_environment, (epoch_record(seed, 1),)) for seed in (0, 1)]
    retraining(clean_environment, range(2), 0, Summary.of(results))
    records, rows = logged(clean_environment / "retrain")
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.job_type, run.display_name) == ("retrain", "retrain-digits-1")
    losses = [row for row in rows if "seed1/step" in row]
    assert [row["seed1/step"] for row in losses] == [10, 20]
    assert losses[0].items() >= {"seed1/train/loss": 0.5, "seed1/train/lr": 0.1, "seed1/train/momentum": 0.5}.items()
    assert "seed1/train/loss" not in losses[1]  # not finite
    tests = [row for row in rows if "seed1/epoch" in row]
    assert [(row["seed1/epoch"], row["seed1/test/accuracy"]) for row in tests] == [(1, 0.875), (2, 0.875)]
    updates = [update for record in records if record.HasField("summary") for update in record.summary.update]
    summary = {update.key: json.loads(update.value_json) for update in updates if update.key}
    # The mean of 0.75 and 0.875, exact in binary; their sample standard deviation is 1/8/sqrt(2).
    assert summary.items() >= {"retrained_test_accuracy": 0.8125, "retrained_test_loss": 0.25}.items()
    assert summary["retrained_test_accuracy_std"] == pytest.approx(0.125 / math.sqrt(2))


def test_a_retraining_that_goes_on_keeps_its_run_and_one_that_fails_says_so(clean_environment: Path) -> None:
    pytest.importorskip("wandb")
    folder = clean_environment / "retrain"
    retraining(clean_environment, range(1), 0, None)
    records, _ = logged(folder)
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]
    run_id = (folder / "wandb_run_id.txt").read_text().strip()
    for old in folder.glob("wandb/offline-run-*"):
        old.rename(clean_environment / old.name)
    retraining(clean_environment, range(1), 1, None)
    (run,) = [record.run for record in logged(folder)[0] if record.HasField("run")]
    assert run.run_id == run_id
