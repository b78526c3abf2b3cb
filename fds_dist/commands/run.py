"""A run as Python sees it: what `optimize` returns, and what `load_run` reads from a folder. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fds_dist.common.console import as_html, plain_line, plain_table
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.paths import expand_path
from fds_dist.common.values import Row, text_of
from fds_dist.common.words import counted, duration, number_text, percent
from fds_dist.config.load import read_mapping
from fds_dist.schedule.schedule import Schedule
from fds_dist.storage.run_folder import CANDIDATES, RunFolder
from fds_dist.tracking.history import read_history
from fds_dist.tracking.records import Cell, OuterRecord, flat_row
from fds_dist.tracking.verdict import Verdict, read_verdict

if TYPE_CHECKING:
    from rich.console import Console

    from fds_dist.tasks.base import Task
    from fds_dist.tasks.datasets import Model


@dataclass(frozen=True)
class Run:
    """A run that has ended, or one that still goes on, as far as it is."""

    run_dir: Path
    schedule: Schedule | None
    """The result, the schedule to use; None before the first outer step is done. It is the candidate with the lowest
    judged loss, or where nothing was judged the average or the last values."""
    best_schedule: Schedule | None
    """The values that trained to the lowest validation loss; None where every inner run diverged."""
    history: list[OuterRecord]
    """One record per outer step."""
    config: dict[str, Any] = field(repr=False)
    """The resolved config, as plain values, secrets included: a result in a notebook does not show it."""
    last_schedule: Schedule | None = field(default=None, kw_only=True)
    """The values after the last update; None before the first outer step is done."""
    average_schedule: Schedule | None = field(default=None, kw_only=True)
    """The mean of the last values; None with `outer.average: 1`."""
    verdict: Verdict | None = field(default=None, kw_only=True)
    """How the candidates did on fresh seeds; None where nothing was judged (yet)."""

    @property
    def rows(self) -> list[dict[str, Cell]]:
        """The history as flat rows, one per outer step: `pandas.DataFrame(run.rows)`.

        Keys: `outer_step`, `horizon`, `val_loss`, `val_accuracy` (None where it is not meant), `seconds`, `world_size`,
        `events` (joined by "; "), `metric/NAME`, and by hyperparameter and bucket `hyperparameter/lr/0`,
        `hypergradient/lr/0`, `step_size/lr/0` and, with replicas, `hypergradient_spread/lr/0`.
        """
        return [flat_row(record) for record in self.history]

    def _repr_html_(self) -> str:
        return as_html(self._draw)

    def _draw(self, console: Console) -> None:
        """The folder, what was judged, and a row per outer step."""
        judged = "" if self.verdict is None else f"; {self.verdict.headline}"
        plain_line(console, f"{self.run_dir}: {counted(len(self.history), 'outer step')}{judged}")
        table = plain_table("outer step", "horizon", "val loss", "val accuracy", "time", *self._names)
        for record in self.history:
            facts = [number_text(record.val_loss), percent(record.val_accuracy), duration(record.seconds)]
            values = (_ends(record.hyperparameters[name]) for name in self._names)
            table.add_row(str(record.outer_step), str(record.horizon), *facts, *values)
        console.print(table)

    @property
    def _names(self) -> list[str]:
        return list(self.history[0].hyperparameters) if self.history else []


@dataclass(frozen=True)
class RunResult(Run):
    """What `optimize` did; the same on every rank."""

    schedule: Schedule
    """The result, as in `Run`."""
    converged: bool
    """Whether the step sizes fell below the tolerance before the outer steps were used up."""
    task: Task | None = field(default=None, repr=False, compare=False)
    """The object that was handed in as the task, for `retrain`."""
    model: Model | None = field(default=None, repr=False, compare=False)
    """The module or function that was handed in as the model, for `retrain`."""


def _ends(row: Row) -> str:
    """The first and the last value of a hyperparameter: `0.1 … 0.01`."""
    return text_of(row[0]) if len(row) == 1 else f"{text_of(row[0])} … {text_of(row[-1])}"


RunSource = str | Path | Run
"""A run: its folder, or what `optimize` or `load_run` returned."""


def run_path(run: RunSource, key: str = "RUN_DIR") -> Path:
    """The run's folder.

    Raises:
        UserError: a variable in the path is not set; the fault names `key`.
    """
    return run.run_dir if isinstance(run, Run) else expand_path(run, key)


def task_of(run: RunSource | None, task: Task | None) -> Task | None:
    """`task`; where that is None, the object with which the run was made."""
    return run.task if task is None and isinstance(run, RunResult) else task


def model_of(run: RunSource | None, model: Model | None) -> Model | None:
    """`model`; where that is None, the object with which the run was made."""
    return run.model if model is None and isinstance(run, RunResult) else model


def load_run(run_dir: str | Path) -> Run:
    """The run in a folder: its config, its history and its schedules. Needs no torch.

    A run that still goes on is read as far as it is; read it again for more.

    Args:
        run_dir: the run's folder.

    Raises:
        UserError: it is not the folder of a run (the message names the nearest one), or a file in it is damaged.

    Example:
        >>> run = fds_dist.load_run("runs/digits")
        >>> [row["outer_step"] for row in run.rows], sorted(run.rows[0])[:3]
        ([0, 1], ['events', 'horizon', 'hypergradient/lr/0'])
    """
    folder = RunFolder(expand_path(run_dir, "RUN_DIR")).checked()
    config, faults = read_mapping(folder.config)
    if config is None:
        raise UserError(faults or Fault("RUN_DIR", f"cannot read {folder.config}"))
    schedules = {name: folder.candidate(name) for name in CANDIDATES} | {"result": folder.schedule}
    loaded = {name: Schedule.load(path) for name, path in schedules.items() if path.is_file()}
    return Run(
        run_dir=folder.path,
        schedule=loaded.get("result"),
        best_schedule=loaded.get("best"),
        last_schedule=loaded.get("last"),
        average_schedule=loaded.get("average"),
        verdict=read_verdict(folder.verdict),
        history=read_history(folder.history) if folder.history.is_file() else [],
        config=config,
    )
