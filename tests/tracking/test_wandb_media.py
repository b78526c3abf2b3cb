"""What Weights & Biases shows beside numbers: the schedule as a picture, the log, events, the page, the user's code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from events import inner_block, outer_record, run_end, run_start
from wandb_file import logged
from wandb_server import WandbServer

import fds_dist
from fds_dist.commands.inputs import wandb_session
from fds_dist.commands.optimize.code import own_files
from fds_dist.config import load_config
from fds_dist.tracking.pictures import MOST_PLOTS, schedule_png
from fds_dist.tracking.records import has_curve
from fds_dist.tracking.trackers import Trackers
from fds_dist.tracking.wandb_run import WandbTracker
from fds_dist.tracking.wandb_session import WandbSession

PNG = b"\x89PNG\r\n\x1a\n"
MANY = {"lr": [0.1] * 5, "momentum": [0.5]}
CONFIG = {"task": {"name": "own_tasks:blobs"}, "hyperparameters": {"lr": {"init": 0.05}}}


def test_a_schedule_is_drawn_whatever_its_shape() -> None:
    knots = {"lr": [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)]}
    for schedule, places in (
        ({"lr": [1e-4, 0.1, 0.01]}, knots),
        ({"lr": [1e-4, 0.1], "weights": [[0.1, 0.2], [0.3, 0.4]], "momentum": [0.0]}, {}),
        ({f"lr.{group}": [0.1, 0.2] for group in range(MOST_PLOTS + 3)}, {}),
    ):
        assert schedule_png(schedule, places).startswith(PNG)


def test_wandb_shows_pictures_events_the_log_and_the_page(clean_environment: Path) -> None:
    pytest.importorskip("wandb")
    run_dir = clean_environment
    record = outer_record(0, hyperparameters=MANY, hypergradients=MANY, step_sizes=MANY, events=["no way back"])
    (run_dir / "history.jsonl").write_text(record.to_json() + "\n")
    (run_dir / "index.html").write_text("<p>the page</p>")
    trackers = Trackers([WandbTracker(WandbSession("offline"))])
    trackers.start(run_start(run_dir))
    trackers.inner(inner_block(0, 10))
    trackers.note("outer step 0: https://host/x?token=hidden-value is late")
    trackers.outer(record)
    trackers.finish(replace(run_end(run_dir), report=run_dir / "index.html"))

    records, rows = logged(run_dir)
    (outer,) = [row for row in rows if "outer_step" in row]
    (files,) = run_dir.glob("wandb/offline-run-*/files")
    assert (files / outer["outer/schedule/path"]).read_bytes().startswith(PNG)
    assert outer["step_size/momentum/0"] == outer["hyperparameter/momentum/0"] == 0.5
    assert not any("/lr/" in key for key in outer)  # five numbers: in the picture
    (inner,) = [row for row in rows if "inner_step" in row]
    assert (inner["inner_curve/outer_step_0"], inner["step_in_horizon"]) == (1.5, 10)
    (events,) = files.glob("media/table/events_*.table.json")
    assert json.loads(events.read_text())["data"] == [[0, "no way back"]]
    (page,) = files.glob("media/html/report_*.html")
    assert "<p>the page</p>" in page.read_text()
    log = (files / "output.log").read_text()
    assert "outer step 0 done: horizon 200" in log
    assert "?token=*** is late" in log
    assert log.splitlines()[-1].startswith("finished; ")
    saved = [file.path for each in records if each.HasField("files") for file in each.files.files]
    assert "output.log" in saved
    assert not any(b"hidden-value" in path.read_bytes() for path in run_dir.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("scalars", "names"), [(True, {"lr", "momentum"}), (False, {"momentum"}), (None, {"momentum"})]
)
def test_charts_are_an_option(clean_environment: Path, scalars: bool | None, names: set[str]) -> None:
    pytest.importorskip("wandb")
    tracker = WandbTracker(WandbSession("offline"), scalars)
    tracker.start(run_start(clean_environment))
    tracker.outer(outer_record(0, hyperparameters=MANY, hypergradients=MANY, step_sizes=MANY))
    tracker.finish(run_end(clean_environment, "interrupted"))
    (outer,) = [row for row in logged(clean_environment)[1] if "outer_step" in row]
    assert {key.split("/")[1] for key in outer if key.startswith("hyperparameter/")} == names


def test_few_curves_lie_over_each_other() -> None:
    assert [step for step in range(3) if has_curve(step, 3)] == [0, 1, 2]
    for steps in (20, 21, 1000):
        assert 10 <= sum(has_curve(step, steps) for step in range(steps)) <= 20


def group_of(session: WandbSession, folder: Path) -> str:
    tracker = WandbTracker(session)
    tracker.start(run_start(folder))
    tracker.finish(run_end(folder, "interrupted"))
    (run,) = [record.run for record in logged(folder)[0] if record.HasField("run")]
    return run.run_group


@pytest.mark.parametrize(
    ("overrides", "variables", "expected"),
    [
        ([], {}, "digits-1"),
        (["tracking.wandb.name=mine"], {}, "mine"),
        (["tracking.wandb.group=ours"], {"WANDB_RUN_GROUP": "theirs"}, "ours"),
        ([], {"WANDB_RUN_GROUP": "theirs"}, "theirs"),
        ([], {"WANDB_SWEEP_ID": "sweep-1"}, ""),
    ],
)
def test_a_search_is_in_one_group_with_its_retrainings(
    clean_environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    variables: dict[str, str],
    expected: str,
) -> None:
    pytest.importorskip("wandb")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = load_config(CONFIG, [*overrides, "tracking.wandb.mode=offline"])
    assert group_of(wandb_session(config, "retrain", "digits-1"), clean_environment) == expected


def test_a_comparison_is_one_run(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.chdir(clean_environment)
    config = {
        "task": {"name": "own_tasks:blobs"},
        "hyperparameters": {"lr": {"init": 0.05, "step": 0.02}},
        "outer": {"optimizer": "sign", "steps": 1},
        "compare": {"methods": ["fds", "random"], "seeds": 1, "judge_seeds": 1, "ranges": {"lr": [0.01, 0.1]}},
        "tracking": {"wandb": {"mode": "offline"}},
        "name": "both",
    }
    comparison = fds_dist.compare(config, progress=False).comparison
    records, rows = logged(Path("runs/both"))
    (run,) = [record.run for record in records if record.HasField("run")]
    assert (run.job_type, run.run_group, run.display_name) == ("compare", "both", "both")
    (table,) = Path("runs/both").glob("wandb/offline-run-*/files/media/table/comparison_*.table.json")
    told = [row[0] for row in json.loads(table.read_text())["data"]]
    assert told == [each.method for each in comparison.runs] == ["fds", "random"]
    assert any("picture/path" in row for row in rows)


ONLINE = """
import sys
from dataclasses import replace
from pathlib import Path
from events import outer_record, run_end, run_start
from fds_dist.tracking.wandb_run import WandbTracker
from fds_dist.tracking.wandb_session import WandbSession
run_dir = Path(sys.argv[1])
tracker = WandbTracker(WandbSession("online"), code=[run_dir / "task.py"])
tracker.start(run_start(run_dir))
tracker.outer(outer_record(0))
tracker.finish(replace(run_end(run_dir), report=run_dir / "index.html"))
"""


def test_an_online_run_gets_the_page_and_the_code_as_artifacts(clean_environment: Path) -> None:
    pytest.importorskip("wandb")
    run_dir = clean_environment
    (run_dir / "index.html").write_text("<p>the page</p>")
    (run_dir / "task.py").write_text("SEED = 0\n")
    with WandbServer() as server:
        done = subprocess.run(  # a process of its own: wandb asks for the server's address once
            [sys.executable, "-c", ONLINE, str(run_dir)],
            env=os.environ | server.environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    (run,) = server.runs.values()
    assert {"report-digits-1", "code-digits-1"} <= set(run.artifacts)
    assert run.exit_code == 0


def test_only_files_in_the_current_folder_are_the_users_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words_own_task.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    __import__("words_own_task")
    task: dict[str, Any] = {**CONFIG, "task": {"name": "words_own_task:make"}}
    assert own_files(load_config(task)) == [tmp_path / "words_own_task.py"]
    assert own_files(load_config(CONFIG)) == []
    monkeypatch.delitem(sys.modules, "words_own_task")
