"""What a user may want to do after a search, and the command lines for it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from fds_dist.build import Build
from fds_dist.outer.progress import OuterProgress
from fds_dist.storage.run_folder import RunFolder


def next_steps(run_dir: Path, built: Build, status: str, progress: OuterProgress, from_python: bool) -> dict[str, str]:
    """The next steps: what each one does, and its line for the shell or for Python.

    Args:
        status: how the search ended. Unless "finished", the only next step is to continue the search.
        progress: where it ended.
        from_python: whether task or model are objects, which no command line can name.
    """
    folder = shlex.quote(str(run_dir))
    resume = f"{program()} optimize --resume {folder}"
    if from_python:
        resume = f"fds_dist.optimize(resume={str(run_dir)!r}, task=..., model=...)"
    if status != "finished":
        return {"continue": resume}
    grouped_by = ", its optimizer made from fds_dist.parameter_groups" if built.problem.groups else ""
    load = f"fds_dist.load_schedule({str(run_dir)!r})"
    steps = {"train with it": f"{load}.attach(optimizer){grouped_by}"}
    if from_python:
        steps["train on all data"] = "fds_dist.retrain(result)"
        steps["export it"] = f"fds_dist.export({str(run_dir)!r})"
    else:
        config = shlex.quote(str(RunFolder(run_dir).config))
        steps["train on all data"] = f"{program()} retrain {folder}"
        steps["export it"] = f"{program()} export {folder} > schedule.py"
        steps["check its gradients"] = f"{program()} verify {config}"
        if (override := _for_more(built, progress)) is not None:
            steps["search further"] = f"{resume} {override}".rstrip()
    return steps


def _for_more(built: Build, progress: OuterProgress) -> str | None:
    """The override with which a resumed search does more outer steps; None where there is none."""
    settings = built.settings
    if progress.converged:
        return None
    if progress.outer_step >= len(settings.horizons):
        return None if listed_length(built) else f"outer.steps={2 * len(settings.horizons)}"
    return "outer.target=null" if replace(settings, timeout=None).ending(progress) else ""


def listed_length(built: Build) -> str:
    """The key under which the config lists the length of each outer step's inner run; "" where all are as long."""
    inner = built.config.inner
    return next((f"inner.{key}" for key in ("epochs", "steps") if isinstance(getattr(inner, key), list)), "")


def program() -> str:
    """The program's name or path, as the shell finds it from the current folder."""
    on_path, beside = shutil.which("fds-dist"), Path(sys.executable).with_name("fds-dist")
    if on_path is not None or not beside.is_file():
        return "fds-dist" if on_path else "python -m fds_dist"
    path = os.path.relpath(beside)
    return shlex.quote(str(beside) if path.startswith("..") else path)
