"""`fds-dist report`: the page of one run, or of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fds_dist.commands.report.contents import RunContents
from fds_dist.commands.report.live import watch as watch_runs
from fds_dist.commands.report.page import PAGE, write_report
from fds_dist.commands.report.reading import read_run
from fds_dist.commands.run import Run, RunSource, run_path
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.paths import expand_path
from fds_dist.distributed.environment import read_environment
from fds_dist.storage.run_folder import RunFolder


def report(run_dirs: RunSource | Sequence[RunSource], output: str | Path | None = None, *, watch: bool = False) -> Path:
    """Writes the report of one run, or of several side by side: one self-contained HTML page, and figures.

    Args:
        run_dirs: the folder of a run or what `optimize` returned, or several.
        output: the folder to write to. None: `report` in the run's folder, or beside the first of several.
        watch: whether to write the page again whenever a run has come further, until all are over or Ctrl-C is pressed.
            Meanwhile the page loads itself again, also where a browser has opened it as a file.

    Returns:
        The page's path. Rank 0 writes it.

    Raises:
        UserError: one of the folders is not a run's, or the report's folder cannot be made.

    Example:
        >>> page = fds_dist.report("runs/digits")
        >>> str(page)
        'runs/digits/report/index.html'
    """
    paths = [run_path(run) for run in ([run_dirs] if isinstance(run_dirs, str | Path | Run) else run_dirs)]
    if not paths:
        raise UserError(Fault("RUN_DIR", "is missing", "the folder of a run"))
    runs = _read_runs(paths)
    usual = RunFolder(paths[0]).report if len(paths) == 1 else paths[0].parent / "report"
    folder = usual if output is None else expand_path(output, "--output")
    if read_environment().rank:
        return folder / PAGE
    return watch_runs(paths, folder) if watch else write_report(runs, folder)


def _read_runs(paths: Sequence[Path]) -> list[RunContents]:
    """The runs in all folders, or the faults of all."""
    runs, faults = [], []
    for path in paths:
        try:
            runs.append(read_run(path))
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(faults)
    return runs
