"""A run's folder: its name, the files in it, and what is written down about the machine."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from fds_dist.faults import Fault, UserError

_PACKAGES = ("torch", "torchvision", "numpy", "wandb")
_SECRET = re.compile(r"key|token|password|secret", re.IGNORECASE)


@dataclass(frozen=True)
class RunFolder:
    """Where the parts of a run are kept."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config: running it again gives the same run."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """`environment_info` of the start."""
        return self.path / "environment.json"

    @property
    def history(self) -> Path:
        """One line per outer step."""
        return self.path / "history.jsonl"

    @property
    def schedule(self) -> Path:
        """The learned values after the last update."""
        return self.path / "schedule.json"

    @property
    def best_schedule(self) -> Path:
        """The values that reached the lowest validation loss."""
        return self.path / "schedule_best.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        return self.path / "report"


def create_run_folder(output_dir: Path | str, name: str | None, task: str, model: str | None, now: datetime) -> Path:
    """Creates OUTPUT_DIR/NAME and returns it; NAME is '<task>-<model>-<YYYYmmdd-HHMMSS>' where none is given.

    An existing folder is never used again: then the name gets '-2', '-3', ... Two processes that ask for the same
    name at the same time get two folders.

    Raises:
        UserError: the name is no plain folder name, or the folder cannot be created.
    """
    if name is None:
        parts = (_plain(task), _plain(model or ""), now.strftime("%Y%m%d-%H%M%S"))
        name = "-".join(filter(None, parts))
    elif name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise UserError(Fault("name", f"{name!r} is not a folder's name", "a name without slashes"))
    output_dir = Path(output_dir)
    path = output_dir / name
    number = 1
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1
                path = output_dir / f"{name}-{number}"
    except OSError as error:
        raise UserError(
            Fault("output_dir", f"cannot create a folder in {output_dir}: {error.strerror}", "a folder to write in")
        ) from None


def folder_of_launch(output_dir: Path | str, search: int, launchers: Collection[str]) -> Path | None:
    """The folder whose environment.json names this search of one of these launchers; None if there is none."""
    for path in Path(output_dir).glob("*/environment.json"):
        try:
            launch = json.loads(path.read_text(encoding="utf-8"))["launch"]
            if launch["search"] == search and not set(launchers).isdisjoint(launch["launchers"]):
                return path.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not of a search, or damaged
    return None


def write_text_atomic(path: Path, text: str) -> None:
    """Writes a file so that whoever reads it, also after a crash, sees the old text or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def environment_info(world_size: int, device: str) -> dict[str, Any]:
    """What it takes to understand a run's numbers later, ready for JSON. None stands for what is not there."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": hide_secrets(sys.argv),
        "fds_dist": _version("fds-dist"),
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "world_size": world_size,
        "device": device,
        "git_commit": _git_commit(),
    }


def hide_secrets(arguments: Sequence[str]) -> list[str]:
    """The command line with '***' for every value whose key looks like a secret: 'key=VALUE' and '--key VALUE'."""
    shown: list[str] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if shown and shown[-1].startswith("--") and _SECRET.search(shown[-1]) and "=" not in shown[-1]:
            shown.append("***")
        elif equals and _SECRET.search(key):
            shown.append(f"{key}=***")
        else:
            shown.append(argument)
    return shown


def _plain(name: str) -> str:
    """A task's or model's name, perhaps 'package.module:function', as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")


def _version(package: str) -> str | None:
    """The version that an imported package tells of itself, which names its build ("2.13.0+cpu"); else its metadata's."""
    told = getattr(sys.modules.get(package), "__version__", None)
    if told is not None:
        return str(told)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str | None:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or None


def _git_commit() -> str | None:
    """The commit checked out in the current folder, with '-dirty' where tracked files have changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, env=environment, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
