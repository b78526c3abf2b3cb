"""A disk that is full at each file that a command writes: one line that names the file; nothing that was saved is lost,
no part of a file is left, and the command goes on once there is room."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from blob_searches import CONFIG
from full_disk import (
    AT_ITS_START,
    BESIDE_A_SEARCH,
    IN_A_COMPARISON,
    IN_A_RETRAINING,
    IN_A_SEARCH,
    IN_A_STUDY_OF_NOISE,
    full_disk,
)
from launching import SUPPORT, clean_environment, start_ranks
from reported_runs import page_of

import fds_dist
from fds_dist.cli import main
from fds_dist.common.files import WriteFailed

SEARCH: dict[str, Any] = CONFIG | {"outer": {"steps": 2, "average": 2, "judge_seeds": 1, "tolerance": 1e-9}}
STUDY: dict[str, Any] = CONFIG | {
    "outer": {"steps": 1},
    "compare": {"methods": ["greedy"], "seeds": 1, "judge_seeds": 1, "retrain_seeds": 1},
    "name": "study",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def search(*overrides: str, resume: str | None = None) -> fds_dist.RunResult:
    return fds_dist.optimize(None if resume else SEARCH, overrides, resume=resume, progress=False)


@pytest.fixture(scope="module")
def without_a_fault(tmp_path_factory: pytest.TempPathFactory) -> fds_dist.RunResult:
    return search(f"output_dir={tmp_path_factory.mktemp('whole')}")


def retrain() -> object:
    return fds_dist.retrain("runs/run", ["epochs=2", "ema=0.9"], progress=False)


def compare() -> object:
    return fds_dist.compare(STUDY, progress=False)


def noise() -> object:
    return fds_dist.noise(STUDY, runs=4, steps=4, progress=False)


def fails_at(pattern: str, call: Callable[[], object], number: int = errno.ENOSPC) -> None:
    """Calls on the full disk; the error names the file, and no part of a file is left."""
    with full_disk(pattern, number) as met, pytest.raises(WriteFailed) as raised:
        call()
    assert met
    shown = re.fullmatch(r"cannot write (\S+): (.*)", str(raised.value))
    assert shown is not None
    assert (Path(shown[1]).name, shown[2]) == (met[0], os.strerror(number))
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert [path for path in files if path.suffix == ".tmp"] == []
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".jsonl":
            assert all(map(json.loads, path.read_text().splitlines()))


@pytest.mark.parametrize("name", IN_A_SEARCH)
def test_a_search_ends_in_order_and_goes_on_once_there_is_room(name: str, without_a_fault: fds_dist.RunResult) -> None:
    fails_at(name, search)
    went_on, whole = search(resume="runs/run"), without_a_fault
    assert went_on.schedule == whole.schedule
    assert [record.val_loss for record in went_on.history] == [record.val_loss for record in whole.history]
    assert went_on.verdict == whole.verdict


@pytest.mark.parametrize("name", AT_ITS_START)
def test_a_search_that_cannot_begin_leaves_nothing_to_resume(name: str) -> None:
    fails_at(name, search)
    assert os.listdir("runs/run") == []


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_quota_a_broken_disk_and_one_that_turns_read_only_are_told_alike(number: int) -> None:
    fails_at("outer_0001.json", search, number)


class Notes(fds_dist.Tracker):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize("name", BESIDE_A_SEARCH)
def test_what_is_no_record_does_not_end_a_search(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    notes = Notes()
    with full_disk(name) as met:
        result = fds_dist.optimize(SEARCH, ["checkpoint.every_seconds=1e-9"], trackers=[notes])
    assert met and len(result.history) == 2
    assert [note for note in notes.notes if f"{name}: No space left on device" in note] != []
    capsys.readouterr()


@pytest.mark.parametrize("name", IN_A_RETRAINING)
def test_a_retraining_goes_on_once_there_is_room(name: str) -> None:
    search()
    fails_at(name, retrain)
    retrain()
    assert (Path("runs/run/retrain/summary.json")).is_file()


@pytest.mark.parametrize("name", IN_A_COMPARISON)
def test_a_comparison_goes_on_once_there_is_room(name: str) -> None:
    fails_at(name, compare)
    compare()
    assert {"compare.json", "compare.pdf", "compare.png"} <= set(os.listdir("runs/study"))


@pytest.mark.parametrize("name", IN_A_STUDY_OF_NOISE)
def test_a_study_of_noise_goes_on_once_there_is_room(name: str) -> None:
    fails_at(name, noise)
    noise()
    assert {"noise.json", "noise.pdf", "noise.png"} <= set(os.listdir("runs/study"))


def test_there_is_no_other_file_that_a_command_writes() -> None:
    for call in (lambda: search("checkpoint.every_seconds=1e-9", "outer.steps=1"), retrain, compare, noise):
        call()
    page_of(Path("runs/run"))
    files = [path for path in Path().rglob("*") if path.is_file()]
    names = {path.name for path in files if path.parent.name != "report" or path.suffix not in (".pdf", ".png")}
    in_a_search = (*AT_ITS_START, *IN_A_SEARCH, *BESIDE_A_SEARCH)
    tried = (*in_a_search, *IN_A_RETRAINING, *IN_A_COMPARISON, *IN_A_STUDY_OF_NOISE)
    assert {name for name in names if not any(fnmatch(name, pattern) for pattern in tried)} == set()


def test_what_a_line_names_is_written_whole_or_keeps_its_content(capsys: pytest.CaptureFixture[str]) -> None:
    search()
    Path("table.csv").write_text("before")
    with full_disk("table.csv"):
        assert main(["export", "runs/run", "--format", "csv", "--output", "table.csv"]) == 1
    assert capsys.readouterr().err == "fds-dist: cannot write table.csv: No space left on device\n"
    assert Path("table.csv").read_text() == "before"
    fails_at("mine.json", lambda: fds_dist.load_schedule("runs/run").save("mine.json"))
    fails_at("index.html", lambda: page_of(Path("runs/run")))
    fails_at("paths.p[dn][fg]", lambda: fds_dist.report("runs/run"))
    if Path("/dev/full").exists():
        with pytest.raises(WriteFailed, match=r"^cannot write /dev/full: No space left on device$"):
            fds_dist.load_schedule("runs/run").save("/dev/full")


def test_a_benchmark_is_printed_where_its_file_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(SEARCH))
    Path("bench.json").write_text("before")
    with full_disk("bench.json") as met:
        assert main(["bench", "run.yaml", "--seconds", "0.01", "--json", "bench.json"]) == 1
    said = capsys.readouterr()
    assert met and said.err.splitlines()[-1] == "fds-dist: cannot write bench.json: No space left on device"
    assert json.loads(said.out)["tangents"] == 2
    assert Path("bench.json").read_text() == "before"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize(
    ("line", "unbuffered"),
    [
        *((line, unbuffered) for line in ("config", "--version") for unbuffered in ("", "1")),
        pytest.param("verify run.yaml --steps 2", "", marks=pytest.mark.slow),  # a report as that of `bench`
        ("bench run.yaml --seconds 0.01 --json", "1"),
    ],
)
def test_what_is_printed_on_a_full_disk_ends_in_one_line(line: str, unbuffered: str) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(SEARCH))
    command = [sys.executable, "-m", "fds_dist", *line.split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=clean_environment(PYTHONUNBUFFERED=unbuffered)
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "fds-dist: cannot write the standard output: No space left on device"
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_all_ranks_end_alike(tmp_path: Path) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(SEARCH))
    program = [str(SUPPORT / "full_disk.py"), "outer_0001.json", "optimize", "run.yaml"]
    ended = start_ranks(program, 2, [tmp_path], clean_environment())
    assert [rank.status for rank in ended] == [1, 1]
    line = "fds-dist: cannot write runs/run/checkpoints/outer_0001.json: No space left on device\n"
    assert [rank.err for rank in ended] == [line, ""]
