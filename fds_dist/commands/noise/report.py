"""What an analysis of noise found: as an object, a JSON file and a table."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fds_dist.commands.noise.estimates import NoiseEstimate
from fds_dist.common.files import write_text_atomic
from fds_dist.common.words import ABSENT


@dataclass(frozen=True)
class NoiseReport:
    """Noise of every analyzed hyperparameter by every estimator."""

    horizon: int
    """T, in steps."""
    runs: int
    """R, those with finite hypergradients."""
    left_out: int
    """Runs that diverged."""
    schedule: dict[str, list[float]]
    """[T] values that the analyzed hyperparameters had."""
    fixed: dict[str, float]
    """Values of the others."""
    estimates: list[NoiseEstimate]
    """One per hyperparameter and estimator."""

    def of(self, hyperparameter: str) -> list[NoiseEstimate]:
        """The estimates of one hyperparameter."""
        return [estimate for estimate in self.estimates if estimate.hyperparameter == hyperparameter]

    @property
    def advised(self) -> list[NoiseEstimate]:
        """The estimates that a recommendation rests on: of the non-greedy hypergradients, which FDS learns from."""
        return [estimate for estimate in self.estimates if estimate.estimator == "non-greedy"]

    @property
    def recommended_buckets(self) -> dict[str, int]:
        """Numbers of buckets by hyperparameter."""
        return {estimate.hyperparameter: estimate.recommended_buckets for estimate in self.advised}


def write_noise(report: NoiseReport, path: Path) -> None:
    """All figures as JSON."""
    content = {"format": "fds-dist noise", "version": 1, "recommended_buckets": report.recommended_buckets}
    write_text_atomic(path, json.dumps(content | asdict(report), indent=1) + "\n")


def print_noise(report: NoiseReport, console: Console) -> None:
    """The figures of theorem 4.1 for each hyperparameter, the best window, and the recommendation in words."""
    title = f"Hypergradient noise: {report.runs:,} runs of {report.horizon:,} steps"
    table = Table(box=None, title=title)
    for heading in ("hyperparameter", "estimator"):
        table.add_column(heading)
    headings = ("variance MSE₁", "correlation c", "drift ε / step", "best W", "good W", "theorem W*", "gain", "buckets")
    for heading in headings:
        table.add_column(heading, justify="right")
    for found in report.estimates:
        low, high = found.best_range
        table.add_row(
            found.hyperparameter,
            found.estimator,
            f"{found.variance:.3g}",
            f"{found.correlation:.3f}",
            f"{found.drift:.3g}",
            f"{found.best_window:.0f}",
            f"{low:.0f}–{high:.0f}",
            f"{found.theorem_window:.0f}",
            gain_text(found),
            str(found.recommended_buckets),
        )
    console.print(table)
    advice = ", ".join(map(advice_text, report.advised))
    lines = [
        "Windows W in steps; good W: error within a tenth or a standard error of the least; gain: MSE₁ over the least.",
        f"Recommended buckets for {report.horizon:,} steps: {advice}.",
    ]
    if report.left_out:
        lines.append(f"{report.left_out} more runs diverged and are left out.")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def advice_text(found: NoiseEstimate) -> str:
    """`lr 21 (10 nearly as good)`"""
    fewer = f" ({found.fewest_buckets} nearly as good)" if found.fewest_buckets < found.recommended_buckets else ""
    return f"{found.hyperparameter} {found.recommended_buckets}{fewer}"


def gain_text(found: NoiseEstimate) -> str:
    """How many times smaller sharing over the best window makes the error."""
    least = min(found.mse)
    return f"{found.mse[0] / least:.3g}×" if least > 0 and math.isfinite(least) else ABSENT
