"""Memory does not grow with the horizon: peaks of processes that do nothing but run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")

SHORT, LONG = 2, 70

# Growth in kB, not a ratio: what PyTorch itself takes (300 MB on a CPU build, three times as much with CUDA) says
# nothing of a run. 123,000 weights in float32 and 3 tangents with their velocities, all live at the end of either
# horizon, take 3 MB; weights and velocity kept at each step would add 1 MB × 68.
ALLOWED, SEEN = 6_000, 50_000
RUN = """
import sys
import torch
from torch import nn
from problems import flat, image_task, make_problem
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.run import InnerRun

torch.set_num_threads(1)
method = sys.argv[1]
task = image_task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3000), nn.Tanh(), nn.Linear(3000, 4)))
buckets = {"lr": [0.01, 0.02], "momentum": [0.5]}
problem = make_problem(task, buckets, method=method, chunk_size=1, dtype=torch.float32)

def peak(horizon, leak=False):
    states = []

    def on_step(state, loss):
        if leak:
            states.append(state)
        return True

    estimate = estimate_forward(InnerRun(problem, flat(buckets), 0, horizon, on_step=on_step))
    assert all(map(abs, estimate.hypergradients))
    # Not ru_maxrss, which counts the process that started this one too.
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))

short, long = map(int, sys.argv[2:])
print(peak(short), peak(long), peak(long, leak=True))  # peaks only rise: the leaking run comes last
"""


@dataclass(frozen=True)
class Peaks:
    """Peak resident memory of one process in kB, after each of its runs."""

    short: int
    long: int
    leaking: int


@lru_cache
def peaks(method: str) -> Peaks:
    """Of a process that computes the hypergradients over a short, a long, and a long horizon that keeps its states."""
    command = [sys.executable, "-c", RUN, method, str(SHORT), str(LONG)]
    path = os.pathsep.join([str(ROOT / "tests" / "support"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    # A fixed threshold keeps the allocator from changing its mind about large blocks half-way.
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Peaks(*map(int, done.stdout.split()))


# Slow: the horizon is the same loop for both.
@pytest.mark.parametrize("method", ["double_backward", pytest.param("jvp", marks=pytest.mark.slow)])
def test_peak_memory_does_not_grow_with_the_horizon(method: str) -> None:
    peak = peaks(method)
    assert peak.long - peak.short < ALLOWED


def test_the_measurement_sees_a_run_that_keeps_its_states() -> None:
    peak = peaks("double_backward")
    assert peak.leaking - peak.short > SEEN
