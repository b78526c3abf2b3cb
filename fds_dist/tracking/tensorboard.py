"""TensorBoard event files, written by the ``tensorboard`` package itself."""

from __future__ import annotations

import time
from typing import Any

from fds_dist.tracking.history import steps_before
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart, inner_metrics, outer_metrics
from fds_dist.tracking.trackers import Tracker


class TensorBoardTracker(Tracker):
    """Scalars under RUN_DIR/tensorboard: ``outer/*``, ``hyperparameter/NAME/BUCKET`` and
    ``hypergradient/NAME/BUCKET`` against the outer step, ``inner/*`` against all inner steps so far, and
    ``judged/CANDIDATE/*`` once at the end."""

    def __init__(self) -> None:
        self._writer: Any = None
        self._steps_before = self._outer_steps = 0

    def start(self, run: RunStart) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            raise RuntimeError(
                "the tensorboard package is missing; install it by: pip install 'fds-dist[tensorboard]'"
            ) from None
        self._outer_steps = run.first_outer_step
        self._steps_before = steps_before(run.run_dir, run.first_outer_step)
        self._writer = EventFileWriter(str(run.run_dir / "tensorboard"))

    def inner(self, block: InnerBlock) -> None:
        self._write(inner_metrics(block), self._steps_before + block.steps.stop)

    def outer(self, record: OuterRecord) -> None:
        self._steps_before += record.horizon
        self._outer_steps = record.outer_step + 1
        self._write(outer_metrics(record), record.outer_step)
        self._writer.flush()

    def finish(self, end: RunEnd) -> None:
        if self._writer is not None:
            if end.verdict is not None:
                self._write(end.verdict.figures, self._outer_steps)
            self._writer.close()

    def _write(self, metrics: dict[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
