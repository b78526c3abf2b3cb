"""Where a hyperparameter may start: within its bounds, and where its scale has a coordinate."""

from __future__ import annotations

from typing import Any

import pytest

from fds_dist.config import read_draft


def lines(name: str, entry: object) -> list[str]:
    draft = read_draft({"task": {"name": "digits"}, "hyperparameters": {name: entry}})
    return [str(fault) for fault in draft.faults]


@pytest.mark.parametrize(
    ("name", "entry", "line"),
    [
        ("lr", {"init": -0.1}, ".init: -0.1 is out of range; expected a number of at least 0"),
        (
            "lr",
            {"init": -0.1, "max": 1},
            ".init: -0.1 is out of range; expected a number of at least 0 and at most 1",
        ),
        ("momentum", {"init": 1}, ".init: 1 is out of range; expected a number of at least 0 and below 1"),
        (
            "lr",
            {"init": 0.7, "min": 0.1, "max": 0.5},
            ".init: 0.7 is out of range; expected a number of at most 0.5 (max)",
        ),
        (
            "lr",
            {"init": 0.7, "min": None, "max": 0.5},
            ".init: 0.7 is out of range; expected a number of at most 0.5 (max)",
        ),
        (
            "lr",
            {"init": 0.0, "scale": "log"},
            ".init: 0 has no logarithm; expected a number above 0, or scale: linear",
        ),
        (
            "momentum",
            {"init": 1, "min": None, "max": None, "scale": "log"},
            ".init: 1 has no log(1 - x); expected a number below 1, or scale: linear",
        ),
        (
            "momentum",
            {"init": 0.5, "min": 2},
            ".min: 2 is out of range; expected a number of at least 0 and below 1",
        ),
        ("lr", {"init": 0.5, "max": -1}, ".max: -1 is out of range; expected a number of at least 0"),
    ],
)
def test_a_start_outside_its_domain_is_named(name: str, entry: dict[str, Any], line: str) -> None:
    assert lines(name, {"step": 0.1, **entry}) == [f"hyperparameters.{name}{line}"]


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("lr", {"init": 0.0}),
        ("lr", {"init": 1e-9, "min": None, "scale": "log"}),
        ("lr", {"init": -1.0, "min": None}),
        ("momentum", {"init": 0.0, "scale": "log"}),
        ("temperature", {"init": -3.0}),
    ],
)
def test_a_start_within_its_domain_is_no_fault(name: str, entry: dict[str, Any]) -> None:
    assert lines(name, {"step": 0.1, **entry}) == []


def test_a_fixed_number_lies_in_the_natural_domain_too() -> None:
    assert lines("momentum", 1) == [
        "hyperparameters.momentum: 1 is out of range; expected a number of at least 0 and below 1"
    ]
    assert lines("temperature", -1) == []
