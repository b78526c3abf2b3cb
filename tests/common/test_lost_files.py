"""A file system that is gone, or does not answer: what is said of it, and what does not ask it."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from fds_dist.cli import main
from fds_dist.common import access
from fds_dist.common.access import forget_lost_folders
from fds_dist.common.faults import user_line_of
from fds_dist.common.files import FileLost, WriteFailed, lost_file


def test_a_lost_file_is_named_and_other_errors_are_not_taken_for_one() -> None:
    lost = lost_file(OSError(errno.ESTALE, "Stale file handle", "runs/run/checkpoints"))
    assert isinstance(lost, FileLost) and isinstance(lost, WriteFailed)
    assert str(lost) == "cannot reach runs/run/checkpoints: Stale file handle"
    others = [OSError(errno.ENOENT, "No such file", "x"), OSError(errno.ENOTCONN, "Not connected"), ValueError("x")]
    assert [lost_file(error) for error in others] == [None] * 3  # a connection of the user's has no file name


def test_a_command_says_it_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: object, *arguments: object, **options: object) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(path))

    monkeypatch.setattr("fds_dist.cli.parse", lambda arguments: gone("runs/run"))
    assert main(["report", "runs/run"]) == 1
    assert capsys.readouterr().err == f"fds-dist: cannot reach runs/run: {os.strerror(errno.ENOTCONN)}\n"


def test_modules_are_not_looked_for_in_a_folder_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = os.scandir

    def scandir(path: str) -> object:
        if path == "/gone":
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), path)
        return usual(path)

    monkeypatch.setattr(access.os, "scandir", scandir)
    monkeypatch.setattr(sys, "path", ["/gone", *sys.path, "/never-there"])
    before = list(sys.path)
    forget_lost_folders()
    assert sys.path == before[1:]


def test_the_line_that_runs_is_told_without_a_look_at_any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*arguments: object, **options: object) -> None:
        raise AssertionError("a file was looked at")

    frame = sys._getframe()
    monkeypatch.setattr(os, "stat", hangs)
    line = user_line_of(frame)
    monkeypatch.undo()
    assert line.startswith(" at ") and Path(__file__).name in line
