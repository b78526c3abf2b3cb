"""Shows a tracker that sends a search to MLflow: parameters, losses and values per outer step, and the schedule.

MLflow writes to `mlflow.db` and `mlruns/` here, or to the server that `MLFLOW_TRACKING_URI` names; `mlflow ui` shows
it. If MLflow fails, the search goes on without it: a note says so, and `history.jsonl` has everything.
"""

from __future__ import annotations

import mlflow

import fds_dist

CONFIG = {
    "task": {"name": "digits", "batch_size": 64},
    "model": {"name": "mlp", "hidden": [32]},
    "inner": {"epochs": 2},
    "hyperparameters": {"lr": {"init": 0.02, "buckets": 3}, "momentum": 0.9},
    "outer": {"steps": 4},
}


class MlflowTracker(fds_dist.Tracker):
    """A run of MLflow for each search; one that is resumed begins another run."""

    def start(self, run: fds_dist.RunStart) -> None:
        mlflow.set_experiment("fds-dist")
        mlflow.start_run(run_name=run.run_dir.name)
        mlflow.log_params({"tangents": run.tangents, "outer_steps": run.outer_steps, "ranks": run.world_size})
        mlflow.log_dict(run.config, "config.json")

    def outer(self, record: fds_dist.OuterRecord) -> None:
        metrics = {"val_loss": record.val_loss, "seconds": record.seconds}
        if record.val_accuracy is not None:
            metrics["val_accuracy"] = record.val_accuracy
        for name, row in record.hyperparameters.items():
            metrics |= {f"{name}/{bucket}": value for bucket, value in enumerate(row)}
        mlflow.log_metrics(metrics, step=record.outer_step)

    def finish(self, end: fds_dist.RunEnd) -> None:
        if end.verdict is not None:
            mlflow.log_metrics(end.verdict.figures)
        if end.schedule is not None:
            mlflow.log_artifact(str(end.run_dir / "schedule.json"))
        mlflow.end_run("FINISHED" if end.status == "finished" else "FAILED")


if __name__ == "__main__":
    result = fds_dist.optimize(CONFIG, trackers=[MlflowTracker()])
    print(result.verdict and result.verdict.headline)
