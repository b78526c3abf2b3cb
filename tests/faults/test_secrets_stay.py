"""Secrets of a config and of a command line: no file of any command has them but `config.yaml`, and no output."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from forked_python import forked_python
from secret_task import OVERRIDE, SECRETS, VARIABLE
from wandb_file import logged

from fds_dist.cli import main

CONFIG = {
    "task": {"name": "secret_task:service", **SECRETS},
    "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 2}},
    "outer": {"optimizer": "sign", "steps": 1},
    "compare": {"methods": ["fds", "random"], "seeds": 1, "judge_seeds": 1},
    "tracking": {"wandb": {"mode": "offline"}, "tensorboard": True},
    "name": "run",
}

PLANTED = b"planted-"
"""What every secret begins with."""

MAY_HOLD_SECRETS = {"config.yaml", "sweep.yaml"}
"""The user's own files, and their copies in the folders of runs and sweeps."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `config.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"))  # of the jobs of a sweep
    for name, value in VARIABLE.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def run(
    line: Sequence[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int = 0
) -> str:
    """Runs a command line as a shell would; what it has printed, without secrets."""
    monkeypatch.setattr("sys.argv", ["fds-dist", *line])
    assert main(line) == status, capfd.readouterr()
    printed = "".join(capfd.readouterr())
    assert PLANTED.decode() not in printed, printed
    return printed


def assert_clean(folder: Path) -> None:
    """No file below the folder holds a secret but copies of the config, which only their owner can read."""
    holders = [path for path in folder.rglob("*") if path.is_file() and PLANTED in path.read_bytes()]
    assert {path.name for path in holders} <= MAY_HOLD_SECRETS, holders
    written = [path for path in holders if path.parent != folder]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in written), written
    assert not any(VARIABLE["PLANTED"].encode() in path.read_bytes() for path in holders)


def test_a_search_and_the_commands_that_follow_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """5 of the 11 command lines: optimize, optimize --resume, retrain, report and export."""
    pytest.importorskip("wandb")
    run(["optimize", "config.yaml", OVERRIDE], monkeypatch, capfd)
    folder = here / "runs" / "run"
    records, _ = logged(folder)
    assert any(record.HasField("run") for record in records)
    assert list(folder.glob("tensorboard/*")) and list(folder.glob("report/*"))
    text = (folder / "config.yaml").read_text()
    assert "${env:PLANTED}" in text and all(f"planted-{kind}" in text for kind in ("key-1", "credential-5"))
    assert "task.credential=***" in (folder / "environment.json").read_text()
    assert_clean(here)
    for line in (
        ["optimize", "--resume", str(folder), "outer.steps=2", OVERRIDE],
        ["retrain", str(folder), "epochs=1"],
        ["report", str(folder), "--output", "page"],
        ["export", str(folder), "--output", "schedule.py"],
    ):
        run(line, monkeypatch, capfd)
        assert_clean(here)
    page = next((here / "page").glob("*.html")).read_text()
    assert "***" in page and "${env:PLANTED}" in page


@pytest.mark.parametrize(
    "line",
    [
        ["check", "config.yaml", OVERRIDE],
        ["verify", "config.yaml", OVERRIDE, "--steps", "2"],
        ["compare", "config.yaml", OVERRIDE],
        ["noise", "config.yaml", OVERRIDE, "--runs", "4", "--steps", "4"],
        ["bench", "config.yaml", OVERRIDE, "--seconds", "1", "--json", "bench.json"],
    ],
    ids=lambda line: line[0],
)
def test_the_other_commands(
    line: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """5 more of the 11."""
    run(line, monkeypatch, capfd)
    assert_clean(here)


def test_a_sweep_and_its_jobs(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The last of the 11: the secret is a value that the sweep varies, and stands in the command of its jobs."""
    sweep = {
        "method": "grid",
        "command": [
            str(forked_python(here / "bin")),
            "-m",
            "fds_dist",
            "optimize",
            "config.yaml",
            OVERRIDE,
            "${args_no_hyphens}",
        ],
        "parameters": {"task.api_key": {"values": [SECRETS["api_key"]]}, "seed": {"values": [0]}},
    }
    (here / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    printed = run(["sweep", "sweep.yaml", "--local"], monkeypatch, capfd)
    assert "task.api_key=***" in printed
    assert (here / "runs/sweeps/sweep/results.jsonl").is_file() and (here / "runs/sweeps/sweep/job-1").is_dir()
    assert_clean(here)


def test_wandb_does_not_get_a_sweep_with_secrets(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = {
        "method": "grid",
        "command": ["python", "-m", "fds_dist", "optimize", "config.yaml", OVERRIDE, "${args_no_hyphens}"],
        "parameters": {"task.api_key": {"value": SECRETS["api_key"]}, "seed": {"values": [0]}},
    }
    (here / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    printed = run(["sweep", "sweep.yaml", "--create"], monkeypatch, capfd, status=2)
    assert "command: task.credential=*** would be on W&B's server" in printed
    assert "parameters.task.api_key: a secret would be on W&B's server" in printed


def test_what_is_wrong_is_told_without_the_secret(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = [
        "task.url.password=planted-7",
        "task.passwords=planted-8",
        "name=https://a:planted-9@b",
        "seed=${env:PLANTED}",
    ]
    printed = run(["check", "config.yaml", *wrong], monkeypatch, capfd, status=2)
    assert len(printed.splitlines()) == 3 and "seed: '${env:PLANTED}' is text" in printed
