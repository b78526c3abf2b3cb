"""A comparison in Weights & Biases: a row per search, each method's mean losses, and the picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fds_dist.commands.compare.results import Comparison
from fds_dist.common.words import spread
from fds_dist.tracking.wandb_session import WandbSession

COLUMNS = ("method", "repetition", "trials", "plain_steps", "seconds", "judged_loss", "test_accuracy")


def log_comparison(session: WandbSession, comparison: Comparison, folder: Path, config: dict[str, Any]) -> None:
    """Logs a comparison that has ended as one run; called again, as another one. `folder` holds its plots."""
    session.start(folder, folder.name, config, resumed=False)
    try:
        rows = []
        for run in comparison.runs:
            loss = _finite(run.answer and run.answer.judged_loss)
            rows.append([run.method, run.repetition, run.trials, run.cost, run.seconds, loss, run.test_accuracy])
        session.log_table("comparison", COLUMNS, rows)
        for method in comparison.methods:
            answers = [run.answer for run in comparison.runs_of(method)]
            loss = spread(answer.judged_loss for answer in answers if answer is not None)
            session.summarize({f"judged_loss/{method}": _finite(loss and loss.mean)})
        if (picture := folder / "compare.png").is_file():
            session.log_picture(picture.read_bytes(), "picture", {})
    finally:
        session.finish(exit_code=0)


def _finite(number: float | None) -> float | None:
    """The number, or None where a run diverged: W&B takes no infinity."""
    return number if number is not None and math.isfinite(number) else None
