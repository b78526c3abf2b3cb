"""`fds-dist report`: the page of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fds_dist.commands.report.contents import read_run
from fds_dist.commands.report.page import PAGE, write_report
from fds_dist.common.faults import UserError
from fds_dist.distributed.environment import read_environment
from fds_dist.storage.run_folder import RunFolder


def report(run_dirs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the report of one run, or of several side by side, on rank 0; returns the page's path.

    Args:
        output: the folder to write to. None: `report` in the run's folder, or beside the first of several.

    Raises:
        UserError: one of them is no run's folder, or the report's cannot be made.
    """
    paths = [Path(run_dir) for run_dir in run_dirs]
    runs, faults = [], []
    for path in paths:
        try:
            runs.append(read_run(path))
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)
    usual = RunFolder(paths[0]).report if len(paths) == 1 else paths[0].parent / "report"
    folder = usual if output is None else Path(output)
    return folder / PAGE if read_environment().rank else write_report(runs, folder)
