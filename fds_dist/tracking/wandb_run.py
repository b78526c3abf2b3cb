"""A search in Weights & Biases: the same figures as in ``history.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TextIO

from rich.console import Console

from fds_dist.common.console import PIPE_WIDTH
from fds_dist.common.secrets import hide_in_text
from fds_dist.common.values import Row, named_numbers
from fds_dist.tracking.console import ConsoleTracker
from fds_dist.tracking.history import read_history, steps_before
from fds_dist.tracking.pictures import is_drawn, schedule_png
from fds_dist.tracking.records import (
    BY_BUCKET,
    InnerBlock,
    OuterRecord,
    RunEnd,
    RunStart,
    finite,
    has_curve,
    inner_metrics,
    outer_metrics,
)
from fds_dist.tracking.trackers import Tracker
from fds_dist.tracking.wandb_session import WandbSession

SCHEDULE_FILES = (
    *("schedule.json", "schedule_average.json", "schedule_best.json", "schedule_last.json"),
    "judged.json",
)


FEW = 4
"""Where nothing is said, hyperparameters of at most so many numbers have a chart for each of them."""


class WandbTracker(Tracker):
    """Logs a search to wandb. What an outer step gave (``outer/*``, ``hyperparameter/*``, ...) is plotted against
    ``outer_step``, ``inner/*`` against ``inner_step``, which counts the inner steps of all outer steps, and
    ``inner_curve/outer_step_N`` against ``step_in_horizon``, so that the curves lie over each other. wandb's own step
    count is not used. The run's log is what the console prints where there is no terminal.

    Args:
        scalars: see `tracking.wandb.scalars`.
        code: files to send as the run's code, if it is online.
    """

    def __init__(self, session: WandbSession, scalars: bool | None = None, code: Sequence[Path] = ()) -> None:
        self._session, self._code = session, code
        self._most = {True: math.inf, False: 1, None: FEW}[scalars]
        self._steps_before = 0
        self._log: ConsoleTracker | None = None
        session.tell = self.tell

    def start(self, run: RunStart) -> None:
        self._run = run
        self._session.start(run.run_dir, run.run_dir.name, run.config, run.resumed, _STEP_METRICS)
        self._steps_before = steps_before(run.run_dir, run.first_outer_step)
        if (file := self._session.open_log()) is not None:
            self._log = ConsoleTracker(Console(file=_WithoutSecrets(file), force_terminal=False, width=PIPE_WIDTH))
            self._log.start(run)
        self._session.log_files(f"code-{run.run_dir.name}", "code", self._code)

    def inner(self, block: InnerBlock) -> None:
        row = inner_metrics(block) | {"inner_step": self._steps_before + block.steps.stop}
        if has_curve(block.outer_step, self._run.outer_steps):
            curve = finite({f"inner_curve/outer_step_{block.outer_step}": block.train_loss})
            row |= curve | {"step_in_horizon": block.steps.stop}
        self._session.log(row)
        if self._log is not None:
            self._log.inner(block)

    def outer(self, record: OuterRecord) -> None:
        self._steps_before += record.horizon
        row = outer_metrics(record, self._most) | {"outer_step": record.outer_step}
        if self._log is None:  # there is no run
            return
        if is_drawn(record.outer_step, self._run.outer_steps):
            png = schedule_png(record.hyperparameters, self._run.places)
            self._session.log_picture(png, "outer/schedule", row)
        else:
            self._session.log(row)
        self._log.outer(record)

    def note(self, message: str) -> None:
        if self._log is not None:
            self._log.note(message)

    def finish(self, end: RunEnd) -> None:
        try:
            self._session.summarize(
                {
                    "best_val_loss": end.best_val_loss,
                    "best_val_accuracy": end.best_val_accuracy,
                    "plain_steps": end.plain_steps,
                    "result": end.result,
                    **(end.verdict.figures if end.verdict else {}),
                }
            )
            if self._log is not None:
                self._log.finish(end)
                self._log_end(end)
        finally:
            self._session.finish(exit_code=0 if end.status == "finished" else 1)

    def _log_end(self, end: RunEnd) -> None:
        if end.schedule:
            self._log_schedule(end, end.schedule)
        history = end.run_dir / "history.jsonl"
        records = read_history(history) if history.is_file() else []
        if events := [(record.outer_step, event) for record in records for event in record.events]:
            self._session.log_table("events", ("outer_step", "event"), events)
        if end.report is not None:
            self._session.log_page("report", end.report)
            self._session.log_files(f"report-{end.run_dir.name}", "report", [end.report])

    def _log_schedule(self, end: RunEnd, schedule: Mapping[str, Row]) -> None:
        rows = [
            [label, bucket, number, *end.place(name, bucket)]
            for name, values in schedule.items()
            for bucket, value in enumerate(values)
            for label, number in named_numbers({name: value}).items()
        ]
        self._session.log_table(
            "schedule", ("hyperparameter", "bucket", "value", "start_fraction", "end_fraction"), rows
        )
        self._session.log_files(
            f"schedule-{end.run_dir.name}", "schedule", [end.run_dir / name for name in SCHEDULE_FILES]
        )


class _WithoutSecrets(StringIO):
    """Writes text to a file at once, with what looks like a secret hidden."""

    def __init__(self, file: TextIO) -> None:
        super().__init__()
        self._file = file

    def write(self, text: str) -> int:
        self._file.write(hide_in_text(text))
        self._file.flush()
        return len(text)


_STEP_METRICS = {
    "outer/*": "outer_step",
    **{f"{kind}/*": "outer_step" for kind in BY_BUCKET},
    "inner/*": "inner_step",
    "inner_curve/*": "step_in_horizon",
}
