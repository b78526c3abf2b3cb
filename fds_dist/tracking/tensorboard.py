"""A search in TensorBoard: the same figures as in ``history.jsonl``."""

from __future__ import annotations

import json
from typing import Any

from fds_dist.common.secrets import hide_secrets
from fds_dist.tracking.event_files import EventFile
from fds_dist.tracking.history import steps_before
from fds_dist.tracking.pictures import is_drawn, schedule_png
from fds_dist.tracking.records import (
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


class TensorBoardTracker(Tracker):
    """Scalars under RUN_DIR/tensorboard: ``outer/*``, ``hyperparameter/NAME/BUCKET``, ``hypergradient/NAME/BUCKET``
    and ``step_size/NAME/BUCKET`` against the outer step, ``inner/*`` against all inner steps so far, and
    ``judged/CANDIDATE/*`` once at the end; the config as text, the schedule of each outer step as an image. Each inner
    run is a run of its own in TensorBoard, ``outer_step_N``, so that the curves ``inner_curve/train_loss`` lie over
    each other."""

    def __init__(self) -> None:
        self._writer: EventFile | None = None
        self._steps_before = self._outer_steps = 0
        self._curve: EventFile | None = None

    def start(self, run: RunStart) -> None:
        self._outer_steps, self._run = run.first_outer_step, run
        self._steps_before = steps_before(run.run_dir, run.first_outer_step)
        try:
            self._writer = EventFile(run.run_dir / "tensorboard")
        except ImportError:
            raise RuntimeError(
                "the tensorboard package is missing; install it by: pip install 'fds-dist[tensorboard]'"
            ) from None
        self._write_config(run)

    def inner(self, block: InnerBlock) -> None:
        self._write(inner_metrics(block), self._steps_before + block.steps.stop)
        if has_curve(block.outer_step, self._run.outer_steps):
            if self._curve is None:
                self._curve = EventFile(self._run.run_dir / f"tensorboard/outer_step_{block.outer_step}")
            self._write(finite({"inner_curve/train_loss": block.train_loss}), block.steps.stop, self._curve)

    def outer(self, record: OuterRecord) -> None:
        self._steps_before += record.horizon
        self._outer_steps = record.outer_step + 1
        self._write(outer_metrics(record), record.outer_step)
        if is_drawn(record.outer_step, self._run.outer_steps):
            self._write_picture(schedule_png(record.hyperparameters, self._run.places), record.outer_step)
        self._close_curve()

    def finish(self, end: RunEnd) -> None:
        if self._writer is not None:
            if end.verdict is not None:
                self._write(end.verdict.figures, self._outer_steps)
            self._writer.close()
            self._close_curve()

    def _close_curve(self) -> None:
        if self._curve is not None:
            self._curve.close()
            self._curve = None

    def _write(self, metrics: dict[str, float], step: int, writer: EventFile | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        self._add([Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()], step, writer)

    def _write_picture(self, png: bytes, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        self._add([Summary.Value(tag="outer/schedule", image=Summary.Image(encoded_image_string=png))], step)

    def _write_config(self, run: RunStart) -> None:
        """Writes the config, without secrets; an indented block, as Markdown has it."""
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.plugins.text.metadata import create_summary_metadata

        lines = json.dumps(hide_secrets(run.config), indent=2, default=str).splitlines()
        text = "\n".join(f"    {line}" for line in lines)
        tensor = TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        metadata = create_summary_metadata(display_name=None, description=None)
        self._add([Summary.Value(tag="config", metadata=metadata, tensor=tensor)], run.first_outer_step)

    def _add(self, values: list[Any], step: int, writer: EventFile | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        file = writer or self._writer
        if file is not None:
            file.add(step, Summary(value=values))
