"""What a run tells its trackers, made up; and a tracker that remembers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fds_dist.tracking.records import InnerBlock, OuterRecord, OuterWork, RunEnd, RunStart, Stage
from fds_dist.tracking.trackers import Tracker, Trackers


def run_start(run_dir: Path, first_outer_step: int = 0, resumed: bool = False, **config: Any) -> RunStart:
    """A search of three outer steps. One epoch has 200 inner steps, all of which cost the same."""
    epochs = config.get("inner", {}).get("epochs", [1, 1, 1])
    work = tuple(OuterWork((Stage(200 * length, 4.0),)) for length in epochs)
    return RunStart(run_dir, config, 3, first_outer_step, 9, 2, "cpu", resumed, work)


def outer_record(outer_step: int, **changes: Any) -> OuterRecord:
    values: dict[str, Any] = {
        "outer_step": outer_step,
        "horizon": 200,
        "hyperparameters": {"lr": [0.1 + 0.2, 1e-300], "momentum": [0.5]},
        "hypergradients": {"lr": [-1.25, 3.0], "momentum": [1 / 3]},
        "val_loss": 2.3,
        "val_accuracy": 0.11,
        "seconds": 4.2,
        "world_size": 2,
        "step_sizes": {"lr": [0.1, 0.05], "momentum": [0.1]},
        "events": ["momentum: the sign changed"],
    }
    return OuterRecord(**(values | changes))


def inner_block(outer_step: int, stop: int, horizon: int = 200, live: int = 4) -> InnerBlock:
    return InnerBlock(outer_step, range(stop - 10, stop), horizon, live, 1.5, {"lr": 0.3})


def run_end(run_dir: Path, status: str = "finished", message: str = "") -> RunEnd:
    return RunEnd(status, message, {"lr": [0.25, 0.5], "momentum": [0.9]}, 1, 0.75, 0.625, run_dir)


def write_history(path: Path, steps: int, torn: str = "") -> None:
    path.write_text("".join(outer_record(step).to_json() + "\n" for step in range(steps)) + torn)


class Recorder(Tracker):
    """Remembers what it is told, and raises where it is asked to."""

    def __init__(self, fails_in: str = "", required: bool = False) -> None:
        self.required = required
        self.fails_in = fails_in
        self.told: list[tuple[str, Any]] = []

    def _hear(self, method: str, argument: Any) -> None:
        self.told.append((method, argument))
        if method == self.fails_in:
            raise OSError("no space\non the device")

    def start(self, run: RunStart) -> None:
        self._hear("start", run)

    def inner(self, block: InnerBlock) -> None:
        self._hear("inner", block)

    def outer(self, record: OuterRecord) -> None:
        self._hear("outer", record)

    def note(self, message: str) -> None:
        self._hear("note", message)

    def finish(self, end: RunEnd) -> None:
        self._hear("finish", end)


def whole_run(trackers: Trackers, run_dir: Path) -> list[tuple[str, Any]]:
    said = [
        ("start", run_start(run_dir)),
        ("inner", inner_block(0, 10)),
        ("outer", outer_record(0)),
        ("note", "look here"),
        ("finish", run_end(run_dir)),
    ]
    for method, argument in said:
        getattr(trackers, method)(argument)
    return said
