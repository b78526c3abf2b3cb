"""Shows a tracker of one's own, which writes a CSV file, and a callback, which ends the search when it is good enough.

Both see the same records. A tracker only writes down; if it fails, the search goes on without it. A callback decides:
the search ends, on all ranks, when one of its methods returns `fds_dist.Stop`.
"""

from __future__ import annotations

import csv

import fds_dist

CONFIG = {
    "task": {"name": "digits", "batch_size": 64},
    "model": {"name": "mlp", "hidden": [32]},
    "inner": {"epochs": 3},
    "hyperparameters": {"lr": {"init": 0.02, "buckets": 3}, "momentum": 0.9},
    "outer": {"steps": 8},
}


class CsvTracker(fds_dist.Tracker):
    """A line per outer step."""

    def start(self, run: fds_dist.RunStart) -> None:
        self.file = (run.run_dir / "steps.csv").open("a", newline="")
        self.writer = csv.writer(self.file)

    def outer(self, record: fds_dist.OuterRecord) -> None:
        self.writer.writerow([record.outer_step, record.val_loss, *record.hyperparameters["lr"]])

    def finish(self, end: fds_dist.RunEnd) -> None:
        self.file.close()


class GoodEnough(fds_dist.Callback):
    """Ends the search at a validation accuracy of 95 %."""

    def outer_step(self, record: fds_dist.OuterRecord) -> fds_dist.Stop | None:
        if record.val_accuracy is not None and record.val_accuracy >= 0.95:
            return fds_dist.Stop(f"{record.val_accuracy:.1%} right after outer step {record.outer_step}")
        return None


if __name__ == "__main__":
    result = fds_dist.optimize(CONFIG, callbacks=[GoodEnough()], trackers=[CsvTracker()])
    print((result.run_dir / "steps.csv").read_text())
    print(result.rows[-1]["val_accuracy"], result.schedule.values)
