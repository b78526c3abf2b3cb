"""The result of a noise analysis, as an object, a JSON file and a table."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fds_dist.commands.noise.estimates import NoiseEstimate
from fds_dist.common.files import write_text_atomic
from fds_dist.common.words import ABSENT, counted


@dataclass(frozen=True)
class NoiseReport:
    """Noise of every analyzed hyperparameter by every estimator."""

    horizon: int
    """T, in steps."""
    runs: int
    """R, the number of runs with finite hypergradients."""
    left_out: int
    """Runs that diverged."""
    schedule: dict[str, list[float]]
    """[T] values of each analyzed hyperparameter."""
    fixed: dict[str, float]
    """Values of the other hyperparameters."""
    estimates: list[NoiseEstimate]
    """One per hyperparameter and estimator."""

    def of(self, hyperparameter: str) -> list[NoiseEstimate]:
        """The estimates of one hyperparameter."""
        return [estimate for estimate in self.estimates if estimate.hyperparameter == hyperparameter]

    @property
    def advised(self) -> list[NoiseEstimate]:
        """The estimates behind the recommendation: those of the non-greedy hypergradients, which FDS learns from."""
        return [estimate for estimate in self.estimates if estimate.estimator == "non-greedy"]

    @property
    def recommended_buckets(self) -> dict[str, int]:
        """Hyperparameter → recommended number of buckets."""
        return {estimate.hyperparameter: estimate.recommended_buckets for estimate in self.advised}


def write_noise(report: NoiseReport, path: Path) -> None:
    """Writes all figures as JSON."""
    content = {"format": "fds-dist noise", "version": 1, "recommended_buckets": report.recommended_buckets}
    write_text_atomic(path, json.dumps(content | asdict(report), indent=1) + "\n")


def print_noise(report: NoiseReport, console: Console) -> None:
    """Prints the figures of theorem 4.1 for each hyperparameter, the best window, and the recommendation in words."""
    title = f"Hypergradient noise: {report.runs:,} runs of {report.horizon:,} steps"
    table = Table(box=None, title=title)
    for heading in ("hyperparameter", "estimator"):
        table.add_column(heading)
    headings = ("variance MSE₁", "correlation c", "drift ε / step", "best W", "good W", "theorem W*", "gain", "buckets")
    for heading in headings:
        table.add_column(heading, justify="right")
    for estimate in report.estimates:
        low, high = estimate.best_range
        table.add_row(
            estimate.hyperparameter,
            estimate.estimator,
            f"{estimate.variance:.3g}",
            f"{estimate.correlation:.3f}",
            f"{estimate.drift:.3g}",
            f"{estimate.best_window:.0f}",
            f"{low:.0f}–{high:.0f}",
            f"{estimate.theorem_window:.0f}",
            gain_text(estimate),
            str(estimate.recommended_buckets),
        )
    console.print(table)
    advice = ", ".join(map(advice_text, report.advised))
    lines = [
        "W: window in steps. good W: error within a tenth or a standard error of the least. gain: MSE₁ / least error.",
        f"Recommended buckets for {report.horizon:,} steps: {advice}.",
        "They are constant. Knots of shape linear average as much noise at a distance of W / 1.5.",
    ]
    if report.left_out:
        lines.append(f"{counted(report.left_out, 'more run')} diverged: left out.")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def advice_text(estimate: NoiseEstimate) -> str:
    """`lr 21 (10 nearly as good)`, or `momentum 1 (no gain from sharing: one is as good)`."""
    buckets, fewest = estimate.recommended_buckets, estimate.fewest_buckets
    if not estimate.sharing_gains:
        count = "one is" if buckets == 1 else f"{buckets} are"
        return f"{estimate.hyperparameter} {buckets} (no gain from sharing: {count} as good)"
    return f"{estimate.hyperparameter} {buckets}" + (f" ({fewest} nearly as good)" if fewest < buckets else "")


def gain_text(estimate: NoiseEstimate) -> str:
    """The factor by which sharing over the best window reduces the error."""
    least = min(estimate.mse)
    return f"{estimate.mse[0] / least:.3g}×" if least > 0 and math.isfinite(least) else ABSENT
