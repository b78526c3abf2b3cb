"""Weights & Biases as a mirror of the run: it may be missing, offline or unreachable, and the run goes on."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fds_dist.faults import Fault, UserError
from fds_dist.tracking.history import steps_before
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart, inner_metrics, outer_metrics

DEFAULT_MODE = "disabled"
DEFAULT_PROJECT = "fds-dist"
INIT_SECONDS = 5.0
FINISH_SECONDS = 10.0

_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
_SECRET = re.compile(r"key|token|password|secret", re.IGNORECASE)


class WandbTracker:
    """Logs to wandb, with its files under RUN_DIR/wandb.

    Where an argument is left at its default, the environment variable that wandb itself reads decides:
    WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_RUN_GROUP, WANDB_JOB_TYPE, WANDB_TAGS, WANDB_RUN_ID.
    The run's id is kept in RUN_DIR/wandb_run_id.txt, and a resumed run goes on under it. wandb's own step is left
    alone: ``outer/*``, ``hyperparameter/*`` and ``hypergradient/*`` are plotted against ``outer_step``, ``inner/*``
    against ``inner_step``, which counts on over the outer steps.

    Args:
        mode: 'online', 'offline' or 'disabled' (wandb is not even imported). An online run that cannot start
            within INIT_SECONDS becomes an offline one, with a note that says how to send it later.

    Raises:
        UserError: the mode, or WANDB_MODE, is none of these.
    """

    required = False

    def __init__(
        self,
        mode: str = DEFAULT_MODE,
        project: str = DEFAULT_PROJECT,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        run_id: str | None = None,
    ) -> None:
        self._mode = effective_mode(mode)
        self._project = os.environ.get("WANDB_PROJECT", project) if project == DEFAULT_PROJECT else project
        self._name = name or os.environ.get("WANDB_NAME")
        self._run_id = run_id or os.environ.get("WANDB_RUN_ID")
        # None lets wandb look at its environment variables and settings files.
        self._options = {"entity": entity, "group": group, "job_type": job_type, "tags": list(tags) or None}
        self._run: Any = None
        self._steps_before = 0
        self.tell: Callable[[str], None] = lambda message: None

    def start(self, run: RunStart) -> None:
        if self._mode == "disabled":
            return
        try:
            import wandb
        except ImportError:
            raise RuntimeError("the wandb package is missing; get it by: pip install wandb") from None
        settings = wandb.Settings(
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            silent=True,
            console="off",  # the terminal is the console tracker's
            save_code=False,
            x_disable_meta=any(_SECRET.search(argument) for argument in sys.argv),  # it would hold the command line
        )
        wandb.setup(settings)  # silent from the start: a process without an API key must fail, not ask for one
        options = self._options | {
            "project": self._project,
            "name": self._name or run.run_dir.name,
            "id": self._id(run),
            "dir": str(run.run_dir.resolve()),  # wandb's own process may be in another folder
            "config": hide_secrets(run.config),
            "resume": "allow" if run.resumed else None,
            "reinit": "create_new",  # leaves a run of the calling program alone
            "settings": settings,
        }
        self._run = self._init(wandb, options)
        _id_file(run.run_dir).write_text(f"{self._run.id}\n", encoding="utf-8")
        self._steps_before = steps_before(run.run_dir, run.first_outer_step)
        for metrics, step in _STEP_METRICS.items():
            self._run.define_metric(metrics, step_metric=step)

    def inner(self, block: InnerBlock) -> None:
        if self._run is not None:
            self._run.log(inner_metrics(block) | {"inner_step": self._steps_before + block.steps.stop})

    def outer(self, record: OuterRecord) -> None:
        self._steps_before += record.horizon
        if self._run is not None:
            self._run.log(outer_metrics(record) | {"outer_step": record.outer_step})

    def note(self, message: str) -> None:
        """Events are for the console and the history."""

    def finish(self, end: RunEnd) -> None:
        if self._run is None:
            return
        best = {"best_val_loss": end.best_val_loss, "best_val_accuracy": end.best_val_accuracy}
        try:
            self._run.summary.update({name: value for name, value in best.items() if value is not None})
            if end.schedule:
                self._log_schedule(end.schedule)
        finally:
            self._finish(exit_code=0 if end.status == "finished" else 1)

    def _id(self, run: RunStart) -> str | None:
        stored = _id_file(run.run_dir)
        if run.resumed and stored.exists():
            return stored.read_text(encoding="utf-8").strip()
        return self._run_id

    def _init(self, wandb: Any, options: dict[str, Any]) -> Any:
        if self._mode == "offline":
            return wandb.init(mode="offline", **options)
        try:
            return wandb.init(mode="online", **options)
        except Exception as error:
            run = wandb.init(mode="offline", **options)
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self.tell(
                f"wandb cannot go online ({reason}); the run is kept offline. "
                f"Send it later by: wandb sync {run.settings.sync_dir}"
            )
            return run

    def _log_schedule(self, schedule: Mapping[str, Sequence[float]]) -> None:
        import wandb

        rows = [
            [name, bucket, value, bucket / len(values), (bucket + 1) / len(values)]
            for name, values in schedule.items()
            for bucket, value in enumerate(values)
        ]
        columns: list[Any] = ["hyperparameter", "bucket", "value", "start_fraction", "end_fraction"]
        table = wandb.Table(columns=columns, data=rows)
        # A bound table is a plain file of the run. Unbound, `log` would make an artifact of it, for which wandb
        # asks the server (up to 20 s without an answer) and writes to the home directory.
        table.bind_to_run(self._run, "schedule", "final")
        self._run.log({"schedule": table})

    def _finish(self, exit_code: int) -> None:
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            self.tell(
                f"wandb did not take everything in {FINISH_SECONDS:g} s; "
                f"send the rest by: wandb sync {self._run.settings.sync_dir}"
            )


_STEP_METRICS = {
    "outer/*": "outer_step",
    "hyperparameter/*": "outer_step",
    "hypergradient/*": "outer_step",
    "inner/*": "inner_step",
}


def hide_secrets(config: Any) -> Any:
    """A copy of a plain config in which the value of every key that looks like a secret is ``'***'``."""
    if isinstance(config, Mapping):
        return {key: "***" if _SECRET.search(str(key)) else hide_secrets(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [hide_secrets(value) for value in config]
    return config


def effective_mode(mode: str) -> str:
    """'online', 'offline' or 'disabled': `mode`, or WANDB_MODE where that is left at its default.

    Raises:
        UserError: it is none of these.
    """
    environment = os.environ.get("WANDB_MODE", "") if mode == DEFAULT_MODE else ""
    if (environment or mode) not in _MODES:
        key = "WANDB_MODE" if environment else "tracking.wandb.mode"
        raise UserError(Fault(key, f"{environment or mode!r} is not a mode", "online, offline or disabled"))
    return _MODES[environment or mode]


def _id_file(run_dir: Path) -> Path:
    return run_dir / "wandb_run_id.txt"
