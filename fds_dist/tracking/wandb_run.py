"""A search in Weights & Biases: the same figures as in ``history.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping

from fds_dist.common.values import Row, named_numbers
from fds_dist.tracking.history import steps_before
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart, inner_metrics, outer_metrics
from fds_dist.tracking.trackers import Tracker
from fds_dist.tracking.wandb_session import WandbSession

SCHEDULE_FILES = (
    *("schedule.json", "schedule_average.json", "schedule_best.json", "schedule_last.json"),
    "judged.json",
)


class WandbTracker(Tracker):
    """Logs a search to wandb. ``outer/*``, ``hyperparameter/*`` and ``hypergradient/*`` are plotted against
    ``outer_step``, ``inner/*`` against ``inner_step``, which counts the inner steps of all outer steps. wandb's
    own step count is not used."""

    def __init__(self, session: WandbSession) -> None:
        self._session = session
        self._steps_before = 0
        session.tell = self.tell

    def start(self, run: RunStart) -> None:
        self._run_dir = run.run_dir
        self._session.start(run.run_dir, run.run_dir.name, run.config, run.resumed, _STEP_METRICS)
        self._steps_before = steps_before(run.run_dir, run.first_outer_step)

    def inner(self, block: InnerBlock) -> None:
        self._session.log(inner_metrics(block) | {"inner_step": self._steps_before + block.steps.stop})

    def outer(self, record: OuterRecord) -> None:
        self._steps_before += record.horizon
        self._session.log(outer_metrics(record) | {"outer_step": record.outer_step})

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
            if end.schedule:
                self._log_schedule(end, end.schedule)
        finally:
            self._session.finish(exit_code=0 if end.status == "finished" else 1)

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
            f"schedule-{self._run_dir.name}", "schedule", [self._run_dir / name for name in SCHEDULE_FILES]
        )


_STEP_METRICS = {
    "outer/*": "outer_step",
    "hyperparameter/*": "outer_step",
    "hypergradient/*": "outer_step",
    "hypergradient_spread/*": "outer_step",
    "inner/*": "inner_step",
}
