"""Run folders: fresh names, whole files, and an environment without secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from fds_dist.common.faults import UserError
from fds_dist.common.files import write_text_atomic
from fds_dist.storage.provenance import environment_info
from fds_dist.storage.run_folder import RunFolder, create_run_folder, folder_of_launch

NOW = datetime(2026, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("task", "model", "expected"),
    [
        ("digits", "lenet", "digits-lenet-20260102-030405"),
        ("digits", None, "digits-20260102-030405"),
        ("my.tasks:make", "nets/x:y", "my.tasks-make-nets-x-y-20260102-030405"),
        ("../../etc", "..", "etc-20260102-030405"),
    ],
)
def test_default_name(tmp_path: Path, task: str, model: str | None, expected: str) -> None:
    path = create_run_folder(tmp_path / "new" / "runs", None, task, model, NOW)
    assert path.is_dir()
    assert path == tmp_path / "new" / "runs" / expected


def test_an_existing_folder_is_never_used_again(tmp_path: Path) -> None:
    names = [create_run_folder(tmp_path, "run", "digits", None, NOW).name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]


def test_processes_at_the_same_time_get_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: create_run_folder(tmp_path, "run", "digits", None, NOW), range(32)))
    assert len(set(paths)) == 32


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "../outside"])
def test_a_name_must_stay_in_the_output_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="name: "):
        create_run_folder(tmp_path / "runs", name, "digits", None, NOW)
    assert not (tmp_path / "runs").exists()


def test_what_is_no_run_is_one_fault_with_the_nearest_run(tmp_path: Path) -> None:
    for name, files in {"digits": ["config.yaml", "schedule.json"], "digit": ["config.yaml"], "empty": []}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("")
    assert RunFolder(tmp_path / "digit").checked() == RunFolder(tmp_path / "digit")
    with pytest.raises(UserError) as raised:
        RunFolder(tmp_path / "digitz").checked("--resume")
    problem = f"--resume: {tmp_path}/digitz is not the folder of a run: it holds no config.yaml"
    assert str(raised.value).startswith(f"{problem}; expected OUTPUT_DIR/NAME; did you mean {tmp_path}/digit")
    with pytest.raises(UserError, match=r"it holds no config\.yaml; expected OUTPUT_DIR/NAME$"):
        RunFolder(tmp_path / "empty").checked()
    (fault,) = RunFolder(tmp_path / "digit").faults(file="schedule.json", expected="a run with a schedule")
    assert (fault.problem, fault.expected) == (f"{tmp_path}/digit holds no schedule.json", "a run with a schedule")
    assert fault.suggestion == f"{tmp_path}/digits"


def test_an_output_folder_that_cannot_be_made_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output_dir: "):
        create_run_folder(tmp_path / "file" / "runs", "run", "digits", None, NOW)


def test_the_folder_of_a_launch_is_that_of_the_same_search_and_launcher(tmp_path: Path) -> None:
    contents = {
        "other": {"launch": {"search": 0, "launchers": ["b 1 1"]}},
        "second": {"launch": {"search": 1, "launchers": ["a 1 1", "a 2 1"]}},
        "first": {"launch": {"search": 0, "launchers": ["a 1 1", "a 2 1"]}},
        "bare": {"launch": {"search": 0, "launchers": []}},
        "older": {"hostname": "a"},
        "list": [],
    }
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "environment.json").write_text(json.dumps(content))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "environment.json").write_text("{")
    assert folder_of_launch(tmp_path, 0, ["a 2 1", "c 3 1"]) == tmp_path / "first"  # one node may have been replaced
    assert folder_of_launch(tmp_path, 1, ["a 1 1"]) == tmp_path / "second"
    assert folder_of_launch(tmp_path, 0, ["a 1 2"]) is None
    assert folder_of_launch(tmp_path, 0, []) is None
    assert folder_of_launch(tmp_path / "missing", 0, ["a 1 1"]) is None


def test_write_text_atomic_replaces_the_text_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    write_text_atomic(path, "old")
    write_text_atomic(path, "new é\n")
    assert path.read_text(encoding="utf-8") == "new é\n"
    assert os.listdir(tmp_path) == ["schedule.json"]


def test_a_failed_write_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "schedule.json"
    write_text_atomic(path, "old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["schedule.json"]


def test_environment_info(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fds-dist", "task.secret=abc"])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    info = json.loads(json.dumps(environment_info(2, "cpu")))
    assert info["command"] == ["fds-dist", "task.secret=***"]
    assert info["omp_num_threads"] == "3"
    assert (info["world_size"], info["device"]) == (2, "cpu")
    assert info["numpy"][0].isdigit()
    assert datetime.fromisoformat(info["started"]).tzinfo is not None


def test_git_commit_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert environment_info(1, "cpu")["git_commit"] is None
    (tmp_path / "file").write_text("a")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "file"], [*author, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert environment_info(1, "cpu")["git_commit"] == head
    (tmp_path / "file").write_text("changed")
    assert environment_info(1, "cpu")["git_commit"] == f"{head}-dirty"


def test_environment_info_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment_info(1, "cpu")["git_commit"] is None


def test_paths_of_a_run_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    files = [folder.config, folder.environment, folder.history, folder.schedule, folder.checkpoints, folder.report]
    names = ["config.yaml", "environment.json", "history.jsonl", "schedule.json", "checkpoints", "report"]
    assert files == [tmp_path / name for name in names]
