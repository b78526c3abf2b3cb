"""`launch/setup.sh` takes the build of PyTorch that fits the machine; pip and uv are stood in for."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

STUB = """#!/usr/bin/env bash
# Writes its arguments down, answers `pip install --dry-run` with what pip would install, and runs other Python.
case "$*" in
*--dry-run*) cat "$STUB_FOLDER/offered.json" ;;
"-m pip --version") ;;
"-m pip install"* | "-m uv pip install"*)
    printf '%s\\n' "$*" >>"$STUB_FOLDER/calls"
    [[ $* != *"-m uv"* || ! -e $STUB_FOLDER/no-index ]] ;;
*) exec "$STUB_PYTHON" "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a .venv whose Python is the stub, on a machine without a GPU where pip offers CUDA."""
    root = tmp_path / "checkout"
    (root / "launch").mkdir(parents=True)
    for name in ("launch/setup.sh", "launch/help.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    (root / ".venv/bin").mkdir(parents=True)
    python = root / ".venv/bin/python"
    python.write_text(STUB)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    offer(root, ["nvidia-cublas==13.1; platform_system == 'Linux'", "sympy"])
    return root


def offer(root: Path, requires: list[str]) -> None:
    """What pip would take as torch."""
    entries = [{"metadata": {"version": "2.13.0", "requires_dist": requires}}]
    (root / "offered.json").write_text(json.dumps({"install": entries}))


def set_up(root: Path, gpu: bool = False, **environment: str) -> tuple[int, str, list[str]]:
    """The status, all that it prints, and the installations that it asked for."""
    tools = root / "tools"
    tools.mkdir()
    if gpu:
        (tools / "nvidia-smi").write_text("#!/bin/sh\n")
        (tools / "nvidia-smi").chmod(0o755)
    (root / "calls").write_text("")
    env = {name: value for name, value in os.environ.items() if name != "TORCH"}
    env |= {"PATH": f"{tools}:/usr/bin:/bin", "STUB_FOLDER": str(root), "STUB_PYTHON": sys.executable, **environment}
    done = subprocess.run([root / "launch/setup.sh"], env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr, (root / "calls").read_text().splitlines()


HAS_GPU = Path("/proc/driver/nvidia/version").exists()


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_without_a_gpu_it_takes_the_cpu_build(checkout: Path) -> None:
    status, printed, calls = set_up(checkout)
    assert status == 0, printed
    assert "PyTorch 2.13.0 in the build cpu" in printed
    assert "--torch-backend cpu" in calls[1] and calls[1].endswith("torch torchvision")
    assert "--editable" in calls[2]  # then the package itself


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_where_the_cpu_build_is_not_to_be_had_pip_takes_its_own(checkout: Path) -> None:
    (checkout / "no-index").touch()
    status, printed, calls = set_up(checkout)
    assert status == 0, printed
    assert "the build cpu is not to be had from here; pip takes its own, 2.13.0" in printed
    assert "--editable" in calls[-1]


def test_with_a_gpu_pip_takes_its_own_and_the_size_is_told(checkout: Path) -> None:
    status, printed, calls = set_up(checkout, gpu=True)
    assert status == 0, printed
    assert "some 3 GB to download" in printed
    assert ["--editable" in call for call in calls] == [True]


def test_a_build_that_is_asked_for_is_taken_or_the_setup_fails(checkout: Path) -> None:
    _, _, calls = set_up(checkout, gpu=True, TORCH="cu126")
    assert "--torch-backend cu126" in calls[1]
    shutil.rmtree(checkout / "tools")
    (checkout / ".venv/.fds-dist-installed").unlink()
    (checkout / "no-index").touch()
    status, printed, calls = set_up(checkout, TORCH="cu126")
    assert status == 1
    assert "no build cu126 of PyTorch 2.13.0" in printed
    assert not any("--editable" in call for call in calls)


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_what_pip_offers_is_taken_where_it_is_the_cpu_build(checkout: Path) -> None:
    offer(checkout, ["sympy"])
    status, printed, calls = set_up(checkout)
    assert status == 0, printed
    assert ["--editable" in call for call in calls] == [True]


@pytest.mark.parametrize(("setting", "compiled"), [("", False), ("1", True)])
def test_modules_are_compiled_at_once_only_where_python_would_not_keep_it(
    checkout: Path, setting: str, compiled: bool
) -> None:
    status, printed, calls = set_up(checkout, gpu=True, PYTHONDONTWRITEBYTECODE=setting)
    assert status == 0, printed
    assert ["--no-compile" not in call for call in calls] == [compiled]
