"""Files that another host wrote a moment ago, and that a network file system shows late."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from blob_searches import CONFIG
from launching import SUPPORT, start_ranks
from problems import ONE_RANK

import fds_dist
from fds_dist.common import files
from fds_dist.common.files import digest, is_visible
from fds_dist.storage import checkpoints
from fds_dist.storage.checkpoints import changed_files


class LateFolder:
    """Shows a file to `os.path.isfile` only after this host has changed something in the folder `shown_after` times."""

    def __init__(self, shown_after: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left, self.usual, touch = shown_after, os.path.isfile, Path.touch

        def changed(path: Path) -> None:
            self.left -= 1
            touch(path)

        monkeypatch.setattr(os.path, "isfile", lambda path: self.left <= 0 and self.usual(path))
        monkeypatch.setattr(Path, "touch", changed)


def test_a_file_that_is_seen_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rank-1.safetensors"
    file.write_text("written on another host")
    checksum, late = digest(file), LateFolder(3, monkeypatch)
    assert changed_files(tmp_path, {file.name: checksum}, ONE_RANK) == []
    assert late.left == 0
    assert os.listdir(tmp_path) == [file.name]  # without what the wait has changed


def test_a_file_that_comes_while_one_waits_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "late"
    writer = threading.Timer(0.2, file.touch)
    writer.start()
    assert is_visible(file, time.monotonic() + 60)
    writer.join()


def test_a_file_that_never_comes_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_visible(tmp_path / "never", time.monotonic() + 0.1)
    monkeypatch.setattr(checkpoints, "VISIBLE_SECONDS", 60.0)  # which nobody waits for where rank 0 sees no file
    began = time.monotonic()
    assert changed_files(tmp_path, {"never": "0"}, ONE_RANK) == ["never"]
    assert time.monotonic() - began < files.VISIBLE_SECONDS


@pytest.mark.parametrize(
    "line",
    [
        ["optimize", "--resume", "runs/run", "outer.steps=2"],
        ["retrain", "runs/run", "epochs=1"],
        ["check", "runs/run"],
        ["optimize", "runs/run/config.yaml", "name=again"],
    ],
    ids=lambda line: " ".join(line[:2]),
)
def test_ranks_wait_for_what_a_command_was_given(line: list[str], tmp_path: Path) -> None:
    """Where one host alone would be told that there is no such run."""
    fds_dist.optimize(CONFIG, [f"output_dir={tmp_path / 'runs'}", "outer.steps=1"], progress=False)
    ended = start_ranks([str(SUPPORT / "late_files.py"), "runs/run", *line], 2, [tmp_path])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    assert (tmp_path / "shown").exists()
