"""What the tests of trackers share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No WANDB_* variables, an empty home; returns a run folder."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["fds-dist", "task.api_key=hidden-value"])
    run_dir = tmp_path / "runs" / "digits-1"
    run_dir.mkdir(parents=True)
    return run_dir
