"""``curves.jsonl``: the training loss during each outer step's inner run, at most a hundred points of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fds_dist.common.faults import UserError
from fds_dist.common.records import FloatOrNan, RecordFile, read_records
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunStart
from fds_dist.tracking.trackers import Tracker


@dataclass(frozen=True)
class Curve:
    """The training losses of one inner run: a line of ``curves.jsonl``."""

    outer_step: int
    horizon: int
    steps: list[int]
    """The last inner step of each block, counted from 1. Of a run that an interruption cut in two, the later part."""
    train_losses: list[FloatOrNan]
    """The mean over each block's steps."""


def read_curves(path: Path) -> list[Curve]:
    """The curves of a run, in the order of the file; empty where there is no file, or it is damaged: no result depends
    on it."""
    try:
        return [curve for curve, _ in read_records(path, Curve)] if path.is_file() else []
    except UserError:
        return []


class CurvesFile(Tracker):
    """Appends one line per outer step. A resumed run continues the file without the outer steps that are repeated."""

    def __init__(self, path: Path) -> None:
        self._file = RecordFile(path, Curve)
        self._blocks: list[InnerBlock] = []

    def start(self, run: RunStart) -> None:
        path, self._blocks = self._file.path, []
        if path.exists():
            os.truncate(path, _bytes_before(path, run.first_outer_step))

    def inner(self, block: InnerBlock) -> None:
        if self._blocks and self._blocks[-1].outer_step != block.outer_step:
            self._blocks = []
        self._blocks.append(block)

    def outer(self, record: OuterRecord) -> None:
        blocks, self._blocks = self._blocks, []
        if blocks:
            steps, losses = [block.steps.stop for block in blocks], [block.train_loss for block in blocks]
            self._file.append([Curve(record.outer_step, record.horizon, steps, losses)])


def _bytes_before(path: Path, outer_step: int) -> int:
    """The number of bytes of the curves before this outer step; none of a damaged file, which begins anew."""
    size = 0
    try:
        for curve, end in read_records(path, Curve):
            if curve.outer_step >= outer_step:
                break
            size = end
    except UserError:
        return 0
    return size
