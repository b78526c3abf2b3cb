"""The numbers of one rank decide for all: rounding that differs between ranks does not split a search in two."""

from __future__ import annotations

import json
from pathlib import Path

from launching import SUPPORT, start_ranks


def test_ranks_that_round_otherwise_follow_one_search(tmp_path: Path) -> None:
    config = {
        "task": {"name": "own_tasks:blobs"},
        "hyperparameters": {"lr": {"init": 0.05, "buckets": 2, "step": 0.3, "scale": "log"}},
        "outer": {"optimizer": "adam", "steps": 4, "retreat": True, "judge_seeds": 0},  # by size, not by sign alone
        "estimator": "reverse",
        "consistency": {"mode": "broadcast", "every": 2, "witness": "off"},  # which hides that weights differ
        "device": "cpu",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    ranks = start_ranks([str(SUPPORT / "rounding_task.py"), "config.json"], 2, [tmp_path])
    assert [rank.status for rank in ranks] == [0, 0], ranks
    first, second = ((tmp_path / f"schedule-{rank}").read_text() for rank in (0, 1))
    assert first.startswith("{")
    assert first == second
