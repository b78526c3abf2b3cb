"""What a run asks for as a whole: steps, learned numbers, and memory for all tangents, told before it is built."""

from __future__ import annotations

from typing import Any

import pytest

from fds_dist.build import build
from fds_dist.build import size as sizes
from fds_dist.common.faults import UserError
from fds_dist.config import read_draft
from fds_dist.distributed.environment import LaunchEnvironment

CONFIG: dict[str, Any] = {
    "task": {"name": "synthetic", "steps_per_epoch": 100},
    "hyperparameters": {"lr": {"init": 0.1, "buckets": 2}},
    "inner": {"steps": 4},
}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["inner.steps=null", "inner.epochs=200000"], "inner.epochs: the horizon would have 20,000,000 inner steps"),
        (["inner.steps=20000000"], "inner.steps: 20000000 is out of range; expected .*, at most 10,000,000$"),
        (["inner.clip_gradient=1e300"], r"inner.clip_gradient: 1e\+300 is out of range; .*, at most 1e\+38$"),
        (
            ["hyperparameters.lr.buckets=1000", "hyperparameters.lr.size=2000"],
            "with lr there would be 2,000,000",
        ),
        (["task.dimension=5000"], "task.dimension: 5000 is out of range; expected .* at least 1, at most 2,000$"),
        (["task.samples=1000000", "task.dimension=1000"], "task.samples: 1,000,000 × 1,000 would need 22.4 GiB"),
        (["seed=9223372036854775808"], "seed: 9223372036854775808 is out of range; expected .*, at most 9,223,"),
    ],
)
def test_what_is_too_large_is_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        build(read_draft(CONFIG, overrides), LaunchEnvironment())
    assert len(raised.value.faults) == 1


def test_tangents_that_no_machine_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "free_bytes", lambda device: 0.7)  # 2 tangents of 10 weights in float32 take 80 bytes
    with pytest.raises(UserError, match=r"2 learned numbers × 10 weights would need 80 B of memory"):
        build(read_draft(CONFIG), LaunchEnvironment())
    monkeypatch.setattr(sizes, "free_bytes", lambda device: 0.8)
    build(read_draft(CONFIG), LaunchEnvironment())
