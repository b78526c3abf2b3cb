"""Noise of measured hypergradients: the error of window averages, variance, correlation, drift, best window.

Shapes: R = runs, T = steps of the horizon, N = candidate numbers of buckets.

The hypergradients G [R, T] of R independent runs are known; their true means μ [T] are unknown. Let m_r(t) be the
average of run r over the window of t, and let bars denote means over runs. Then

    MSE_W = mean_t Var(m(t)) + mean_t (E m(t) − μ_t)²          variance + squared bias

The variance is the sample variance over runs (divisor R − 1). The plain squared bias, mean_t (m̄(t) − ḡ_t)², is too
large by the noise that remains in both means of R runs, Var(m(t) − g_t)/R. The code subtracts this noise, which makes
the squared bias exact in expectation; otherwise noise would look like drift, most of all with few runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fds_dist.commands.noise.theorem import Floats, best_window, mse_bound
from fds_dist.schedule.buckets import bucket_start

CANDIDATES = 48
"""The number of bucket counts that are tried, evenly spaced in their logarithm."""

GROUPS = 10
"""Groups of runs that the jackknife leaves out in turn."""

CLOSE = 0.1
"""A window counts as good as the best while its error exceeds the least by at most this share."""

FEWEST_RUNS = 4
"""With fewer runs, neither the variance nor its jackknife error means anything."""


@dataclass(frozen=True)
class NoiseEstimate:
    """The noise of one hyperparameter's hypergradients by one estimator, from R runs."""

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
    """c ≥ 0: mean covariance of two steps of a window, divided by the mean variance; at the best window."""
    drift: float
    """ε of the ramp with the same squared bias, in units of the hypergradient per step; at the best window."""
    best_window: float
    """W of the least measured error."""
    best_range: tuple[float, float]
    """The windows whose error is within a tenth, or within one standard error, of the least."""
    theorem_window: float
    """The theorem's W*, at most T."""
    sharing_gains: bool
    """Whether the best window's error is less than that without sharing, by more than a tenth and a standard error."""
    recommended_buckets: int
    """Number of buckets at the best window; where sharing gains nothing, the fewest that are as good."""
    fewest_buckets: int
    """Number of buckets at the widest window in `best_range`."""
    mean: list[float]
    """[T] over runs, per step."""
    spread: list[float]
    """[T] standard deviation over runs, per step."""


def estimate_noise(hypergradients: Floats, hyperparameter: str = "", estimator: str = "") -> NoiseEstimate:
    """Estimates the noise from the hypergradients [R, T] of R ≥ 4 independent runs, all finite.

    Correlation and drift are measured at the best window, where the theorem's curve meets the measured curve. At other
    windows the distance of the curves shows how well a single c and a single ε describe the noise.
    """
    horizon = hypergradients.shape[1]
    buckets = candidate_buckets(horizon)
    mse, errors, differences = jackknife(hypergradients, buckets)
    windows = horizon / np.array(buckets, dtype=np.float64)
    best = int(np.flatnonzero(mse == mse.min())[-1])  # of equal errors, the widest window
    is_close = mse - mse[best] <= np.maximum(differences, CLOSE * mse[best])
    close, sharing_gains = windows[is_close], not is_close[0]
    fewest = round(horizon / close.max())
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
        sharing_gains=sharing_gains,
        recommended_buckets=buckets[best] if sharing_gains else fewest,
        fewest_buckets=fewest,
        mean=hypergradients.mean(0).tolist(),
        spread=hypergradients.std(0, ddof=1).tolist(),
    )


def candidate_buckets(horizon: int) -> list[int]:
    """Numbers of buckets from `horizon` (no sharing) to 1 (one value for all steps)."""
    spaced = np.geomspace(1, horizon, CANDIDATES).round().astype(int)
    return [int(count) for count in np.unique(spaced)[::-1]]


def window_averages(hypergradients: Floats, buckets: int) -> Floats:
    """m [R, T]: at each step, the average over the window of its bucket."""
    horizon = hypergradients.shape[1]
    starts = [bucket_start(bucket, buckets, horizon) for bucket in range(buckets)]
    widths = np.diff([*starts, horizon])
    return np.repeat(np.add.reduceat(hypergradients, starts, axis=1) / widths, widths, axis=1)


def window_errors(hypergradients: Floats, buckets: int) -> tuple[float, float]:
    """Variance and squared bias of window averages; their sum is MSE_W. A negative estimate of the bias becomes 0."""
    averages = window_averages(hypergradients, buckets)
    deviations = averages - hypergradients
    noise = deviations.var(0, ddof=1) / len(hypergradients)
    bias = (deviations.mean(0) ** 2 - noise).mean()
    return averages.var(0, ddof=1).mean().item(), max(0.0, bias.item())


def correlation_and_drift(hypergradients: Floats, buckets: int) -> tuple[float, float]:
    """c and ε for which the theorem's two terms equal those measured at windows of W = T / `buckets`.

    Var = (1 + c(W − 1))/W · MSE_1 is solved for c, the mean covariance of two different steps of a window divided by
    MSE_1; c is clipped to [0, 1]. bias² = ε²(W² − 1)/12 is solved for ε, the drift of a ramp with that bias.
    """
    window = hypergradients.shape[1] / buckets
    single = hypergradients.var(0, ddof=1).mean().item()
    variance, bias = window_errors(hypergradients, buckets)
    if window == 1 or single == 0:
        return 0.0, 0.0
    correlation = (variance * window / single - 1) / (window - 1)
    return min(max(correlation, 0.0), 1.0), (12 * bias / (window**2 - 1)) ** 0.5


def jackknife(hypergradients: Floats, buckets: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """MSE_W [N], its standard error [N], and the standard error of its distance to the least MSE_W [N].

    Groups of runs are left out in turn. The MSEs of all windows come from the same runs and vary together, so that
    distances between windows are known more precisely than the MSE itself.
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
