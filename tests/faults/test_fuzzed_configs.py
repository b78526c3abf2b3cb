"""Absurd configs: each is refused in one line per fault, or checked; no traceback, and nothing that takes long."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import pytest
from fuzzed_configs import Fuzzed, fuzzed

from fds_dist.cli import main
from fds_dist.config import read_draft

COUNT = 642
"""As many as an earlier run of such configs had."""

SECONDS = 20.0
"""Of processor time, the most that a config may take: what one waits for on a machine that does nothing else."""


def fault_of(config: Fuzzed, folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What is wrong with how `check` took the config; "" where nothing is."""
    path = folder / "config.yaml"
    path.write_bytes(config.content)
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            if config.small:
                status = main(["check", str(path), *config.overrides])
            else:
                status = 2 if [print(f"fds-dist: {fault}", file=sys.stderr) for fault in _faults(path, config)] else 0
    except BaseException as error:
        capfd.readouterr()
        return f"{type(error).__name__}: {str(error)[:200]}"
    seconds, (_, errors) = time.process_time() - began, capfd.readouterr()
    if seconds > SECONDS:
        return f"{seconds:.0f} s"
    lines = errors.splitlines()
    if status not in (0, 2) or bool(lines) != (status == 2):
        return f"status {status} and {len(lines)} lines: {lines[:1]}"
    return next((line[:200] for line in lines if not line.startswith("fds-dist: ") or len(line) > 2000), "")


def _faults(path: Path, config: Fuzzed) -> list[str]:
    return [str(fault) for fault in read_draft(path, config.overrides).faults]


def run_all(configs: list[Fuzzed], folder: Path, capfd: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Name of each config that was not taken as it should be → what was wrong."""
    faults = {}
    for config in configs:
        began = time.monotonic()
        fault = fault_of(config, folder, capfd)
        if fault:
            faults[config.name] = fault
        with capfd.disabled():
            if fault or time.monotonic() - began > SECONDS:
                print(f"{time.monotonic() - began:5.1f} s  {config.name}  {fault}", file=sys.__stdout__, flush=True)
    return faults


def test_a_few(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ninth of them."""
    monkeypatch.chdir(tmp_path)
    assert run_all(fuzzed(COUNT)[::9], tmp_path, capfd) == {}


@pytest.mark.slow
def test_all(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """642 of 642."""
    monkeypatch.chdir(tmp_path)
    configs = fuzzed(COUNT)
    assert len(configs) == COUNT
    assert run_all(configs, tmp_path, capfd) == {}
