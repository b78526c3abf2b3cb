"""Noise of measured hypergradients: error of window averages, variance, correlation, drift, best window.

Shapes: R = runs, T = steps of the horizon, N = candidate numbers of buckets.

Hypergradients of R independent runs G [R, T] are all that is known; their true means μ [T] are not. With m_r(t) the
average of run r over the window of t, and bars for means over runs,

    MSE_W = mean_t Var(m(t)) + mean_t (E m(t) − μ_t)²          variance + squared bias

The variance comes from the runs with R − 1. The plain squared bias, mean_t (m̄(t) − ḡ_t)², is too large by the noise
left in both means of R runs, Var(m(t) − g_t)/R. That is subtracted, which makes it exact in expectation. Otherwise
noise would look like drift, the more so the fewer the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fds_dist.commands.noise.theorem import Floats, best_window, mse_bound
from fds_dist.schedule.buckets import bucket_start

CANDIDATES = 48
"""Numbers of buckets that are tried, evenly spaced in their logarithm."""

GROUPS = 10
"""Of runs, left out in turn by the jackknife."""

CLOSE = 0.1
"""Windows whose error is larger than the least by no more than this share are as good as the best."""

FEWEST_RUNS = 4
"""Below this a variance over runs, and a jackknife of it, say nothing."""


@dataclass(frozen=True)
class NoiseEstimate:
    """What R runs tell about one hyperparameter's hypergradients by one estimator."""

    hyperparameter: str
    estimator: str
    """`greedy` or `non-greedy`."""
    buckets: list[int]
    """[N] numbers of buckets, from the most to 1."""
    windows: list[float]
    """[N] W = T / buckets, in steps."""
    mse: list[float]
    """[N] measured MSE_W."""
    mse_error: list[float]
    """[N] standard errors of `mse`."""
    theorem: list[float]
    """[N] the theorem's bound for the measured variance, correlation and drift."""
    variance: float
    """MSE_1."""
    correlation: float
    """c ≥ 0: mean covariance of two steps of a window over the mean variance, at the best window."""
    drift: float
    """ε of a ramp with the same squared bias, in units of the hypergradient per step, at the best window."""
    best_window: float
    """W of the least measured error."""
    best_range: tuple[float, float]
    """The windows whose error is within a tenth, or within one standard error, of the least."""
    theorem_window: float
    """The theorem's W*, at most T."""
    recommended_buckets: int
    """Those of the best window."""
    fewest_buckets: int
    """Those of the widest window in `best_range`."""
    mean: list[float]
    """[T] over runs, per step."""
    spread: list[float]
    """[T] standard deviation over runs, per step."""


def estimate_noise(hypergradients: Floats, hyperparameter: str = "", estimator: str = "") -> NoiseEstimate:
    """The estimates from hypergradients [R, T] of R ≥ 4 independent runs, all finite.

    Correlation and drift are measured at the best window, the scale that sharing works on: there the theorem's curve
    meets the measured one, and elsewhere it shows how far one c and one ε describe the noise.
    """
    horizon = hypergradients.shape[1]
    buckets = candidate_buckets(horizon)
    mse, errors, differences = jackknife(hypergradients, buckets)
    windows = horizon / np.array(buckets, dtype=np.float64)
    best = int(np.flatnonzero(mse == mse.min())[-1])  # the widest of equals
    close = windows[mse - mse[best] <= np.maximum(differences, CLOSE * mse[best])]
    variance = hypergradients.var(0, ddof=1).mean().item()
    correlation, drift = correlation_and_drift(hypergradients, min(buckets[best], max(1, horizon // 2)))
    return NoiseEstimate(
        hyperparameter=hyperparameter,
        estimator=estimator,
        buckets=buckets,
        windows=windows.tolist(),
        mse=mse.tolist(),
        mse_error=errors.tolist(),
        theorem=mse_bound(windows, variance, drift, correlation).tolist(),
        variance=variance,
        correlation=correlation,
        drift=drift,
        best_window=windows[best].item(),
        best_range=(close.min().item(), close.max().item()),
        theorem_window=min(best_window(variance, drift, correlation), float(horizon)),
        recommended_buckets=buckets[best],
        fewest_buckets=round(horizon / close.max()),
        mean=hypergradients.mean(0).tolist(),
        spread=hypergradients.std(0, ddof=1).tolist(),
    )


def candidate_buckets(horizon: int) -> list[int]:
    """Numbers of buckets from `horizon` (no sharing) to 1 (one value for all steps)."""
    spaced = np.geomspace(1, horizon, CANDIDATES).round().astype(int)
    return [int(count) for count in np.unique(spaced)[::-1]]


def window_averages(hypergradients: Floats, buckets: int) -> Floats:
    """m [R, T]: for each step the average over the window of its bucket."""
    horizon = hypergradients.shape[1]
    starts = [bucket_start(bucket, buckets, horizon) for bucket in range(buckets)]
    widths = np.diff([*starts, horizon])
    return np.repeat(np.add.reduceat(hypergradients, starts, axis=1) / widths, widths, axis=1)


def window_errors(hypergradients: Floats, buckets: int) -> tuple[float, float]:
    """Variance and squared bias of window averages; their sum is MSE_W. The bias is clipped at 0."""
    averages = window_averages(hypergradients, buckets)
    deviations = averages - hypergradients
    noise = deviations.var(0, ddof=1) / len(hypergradients)
    bias = (deviations.mean(0) ** 2 - noise).mean()
    return averages.var(0, ddof=1).mean().item(), max(0.0, bias.item())


def correlation_and_drift(hypergradients: Floats, buckets: int) -> tuple[float, float]:
    """c and ε with which the theorem's two terms are those measured at windows of W = T / `buckets`.

    Var = (1 + c(W − 1))/W · MSE_1 makes c the mean covariance of two different steps of a window over MSE_1, and
    bias² = ε²(W² − 1)/12 makes ε the drift of a ramp as biased as the means are. c is clipped to [0, 1].
    """
    window = hypergradients.shape[1] / buckets
    single = hypergradients.var(0, ddof=1).mean().item()
    variance, bias = window_errors(hypergradients, buckets)
    if window == 1 or single == 0:
        return 0.0, 0.0
    correlation = (variance * window / single - 1) / (window - 1)
    return min(max(correlation, 0.0), 1.0), (12 * bias / (window**2 - 1)) ** 0.5


def jackknife(hypergradients: Floats, buckets: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """MSE_W [N], its standard error [N], and the standard error of its distance to the least [N].

    Groups of runs are left out in turn. The errors of different windows come from the same runs and go up and down
    together, so that their distances are known better than they are.
    """

    def mse(runs: Floats) -> Floats:
        return np.array([sum(window_errors(runs, count)) for count in buckets])

    groups = min(GROUPS, len(hypergradients))
    members = np.arange(len(hypergradients)) % groups
    left_out = np.array([mse(hypergradients[members != group]) for group in range(groups)])
    whole = mse(hypergradients)
    distances = left_out - left_out[:, [int(whole.argmin())]]
    factor = (groups - 1) ** 0.5  # of the jackknife: sqrt((g − 1)/g · Σ(x − x̄)²)
    return whole, factor * left_out.std(0), factor * distances.std(0)
