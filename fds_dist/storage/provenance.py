"""The record of a run's machine, versions and command line."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from fds_dist.common.secrets import hide_secret_arguments

_PACKAGES = ("torch", "torchvision", "numpy", "wandb")


def environment_info(world_size: int, device: str) -> dict[str, Any]:
    """The facts that explain a run's numbers later, as JSON values. None stands for a fact that is not available."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": hide_secret_arguments(sys.argv),
        "fds_dist": version_of("fds-dist"),
        "python": platform.python_version(),
        **{package: version_of(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "world_size": world_size,
        "device": device,
        "git_commit": _git_commit(),
    }


def version_of(package: str) -> str | None:
    """The version that an imported package states, with its build ("2.13.0+cpu"); otherwise the one in its metadata."""
    version = getattr(sys.modules.get(package), "__version__", None)
    if version is not None:
        return str(version)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str | None:
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    return model.group(1).strip() if model else platform.processor() or None


def _git_commit() -> str | None:
    """The commit checked out in the current folder, with '-dirty' if tracked files have changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, env=environment, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
