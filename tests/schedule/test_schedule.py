"""Schedules: which bucket each step reads, and files that give back the same bits or say what is wrong with them."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import Any

import pytest

from fds_dist.common.faults import UserError
from fds_dist.schedule.buckets import bucket_of, bucket_window
from fds_dist.schedule.schedule import Schedule, load_schedule
from fds_dist.schedule.shapes import Constant, segments

SCHEDULE = Schedule(10, {"lr": (0.1, 0.2, 0.3), "momentum": (0.9,)}, {"weight_decay": 5e-4}, {"name": "sgd"})


@pytest.mark.parametrize("horizon", [1, 2, 7, 12, 97])
def test_windows_partition_the_horizon_by_the_floor_formula(horizon: int) -> None:
    for buckets in range(1, horizon + 1):
        windows = [bucket_window(bucket, buckets, horizon) for bucket in range(buckets)]
        assert [step for window in windows for step in window] == list(range(horizon))
        assert max(map(len, windows)) - min(map(len, windows)) <= 1
        for bucket, window in enumerate(windows):
            assert all(floor(Fraction(buckets * step, horizon)) == bucket for step in window)


@pytest.mark.parametrize(("buckets", "horizon"), [(3, 10**17 + 1), (10**6 + 3, 10**18 + 9)])
def test_windows_are_exact_where_floats_are_not(buckets: int, horizon: int) -> None:
    for bucket in (0, 1, buckets // 2, buckets - 1):
        window = bucket_window(bucket, buckets, horizon)
        assert bucket_of(window.start, buckets, horizon) == bucket == bucket_of(window.stop - 1, buckets, horizon)
        assert window.start == 0 or bucket_of(window.start - 1, buckets, horizon) == bucket - 1


@pytest.mark.parametrize("seed", range(5))
def test_segments_are_the_longest_stretches_without_a_change_and_agree_with_at(seed: int) -> None:
    rng = random.Random(seed)
    horizon = rng.randint(5, 60)
    counts = {name: rng.randint(1, min(9, horizon)) for name in ("lr", "momentum", "weight_decay")}
    schedule = Schedule(horizon, {name: tuple(map(float, range(count))) for name, count in counts.items()})
    pieces = list(segments({name: Constant(count) for name, count in counts.items()}, horizon))
    assert [step for piece in pieces for step in range(piece.start, piece.stop)] == list(range(horizon))
    for piece in pieces:
        buckets = {name: reading.bucket for name, (reading,) in piece.readings.items()}
        assert all(schedule.at(step) == buckets for step in range(piece.start, piece.stop))
    assert all(before.readings != after.readings for before, after in pairwise(pieces))


def test_segments_without_learned_hyperparameters() -> None:
    (piece,) = segments({}, 5)
    assert (piece.start, piece.stop, piece.readings) == (0, 5, {})


def test_at() -> None:
    assert [SCHEDULE.at(step)["lr"] for step in range(10)] == [0.1] * 4 + [0.2] * 3 + [0.3] * 3
    assert SCHEDULE.at(0) == {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    assert SCHEDULE.at(10) == SCHEDULE.at(10**9) == SCHEDULE.at(9)
    with pytest.raises(ValueError, match="step is -1"):
        SCHEDULE.at(-1)


@pytest.mark.parametrize("factor", [1, 2, 7])
def test_a_stretched_schedule_reads_the_same_value_at_the_same_share_of_the_horizon(factor: int) -> None:
    long = SCHEDULE.stretch(10 * factor)
    assert all(long.at(step * factor) == SCHEDULE.at(step) for step in range(10))
    assert long.at(10 * factor - 1) == SCHEDULE.at(9)
    assert long.stretch(10) == SCHEDULE


def test_a_horizon_that_is_no_whole_number_is_refused() -> None:
    with pytest.raises(TypeError, match="integer"):
        SCHEDULE.stretch(len(SCHEDULE.values) * 2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("horizon", "values", "message"),
    [(0, {"lr": (0.1,)}, "at least 1 step"), (5, {"lr": (), "momentum": ()}, "without a value: lr, momentum")],
)
def test_a_schedule_without_steps_or_values_is_refused(
    horizon: int, values: dict[str, tuple[float, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(horizon, values)


def awkward_floats() -> tuple[float, ...]:
    rng = random.Random(0)
    patterns = (struct.unpack("<d", rng.randbytes(8))[0] for _ in range(500))
    drawn = [value for value in patterns if abs(value) <= sys.float_info.max]
    return (0.0, -0.0, 5e-324, -2.2e-310, sys.float_info.min, 1e308, -sys.float_info.max, 0.1 + 0.2, 1 / 3, *drawn)


def bits(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def test_a_file_gives_back_the_same_bits(tmp_path: Path) -> None:
    values = awkward_floats()
    fixed = {f"fixed{index}": value for index, value in enumerate(values)}
    schedule = Schedule(10_000, {"λ": values}, fixed, {"name": "sgd", "nesterov": True})
    schedule.save(tmp_path / "schedule.json")
    for loaded in (Schedule.load(tmp_path / "schedule.json"), load_schedule(tmp_path)):
        assert bits(loaded.values["λ"]) == bits(values)
        assert bits(tuple(loaded.fixed.values())) == bits(values)
        assert loaded == schedule


def test_a_file_loads_where_there_is_no_torch(tmp_path: Path) -> None:
    SCHEDULE.save(tmp_path / "schedule.json")
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import fds_dist\n"
        "print(fds_dist.load_schedule(sys.argv[1]).stretch(20).at(13))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == str(SCHEDULE.stretch(20).at(13)), result.stderr


def content(**changes: Any) -> str:
    """The JSON text of `SCHEDULE` with some entries changed; None leaves one out."""
    whole = {**json.loads(SCHEDULE.to_json()), **changes}
    return json.dumps({key: value for key, value in whole.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["file: is not JSON"]),
        (SCHEDULE.to_json()[:-20], ["file: is not JSON"]),
        ("[1, 2]", ["file: is not a schedule"]),
        ("{}", ["file: is not a schedule"]),
        (content(format="another"), ["file: is not a schedule"]),
        (content(version=3), ["file: version: 3 is unknown"]),
        (content(horizon=0), ["file: horizon: 0 is not valid; expected a whole number of at least 1"]),
        (content(horizon=True), ["file: horizon: True"]),
        (content(horizon=2.5), ["file: horizon: 2.5"]),
        (content(hyperparameters=None), ["file: hyperparameters: None"]),
        (content(hyperparameters=[1]), ["file: hyperparameters: [1]"]),
        (content(hyperparameters={"lr": []}), ["file: hyperparameters.lr: [] is not valid"]),
        (content(hyperparameters={"lr": ["0.1"]}), ["file: hyperparameters.lr: ['0.1']"]),
        (content(hyperparameters={"lr": "0.1"}), ["file: hyperparameters.lr: '0.1'"]),
        (content(hyperparameters={"lr": [float("nan")]}), ["file: hyperparameters.lr: [nan]"]),
        (content(hyperparameters={"lr": [0.1, 10**400]}), ["file: hyperparameters.lr: "]),
        (content(fixed={"eps": float("inf")}), ["file: fixed.eps: inf"]),
        (content(fixed={"eps": False}), ["file: fixed.eps: False"]),
        (content(optimizer="sgd"), ["file: optimizer: 'sgd'"]),
        (content(horizon=-1, hyperparameters={"lr": [None]}, fixed=3), ["horizon: -1", "lr: [None]", "fixed: 3"]),
    ],
)
def test_what_is_wrong_with_a_damaged_file_is_named(text: str, expected: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        Schedule.from_json(text, "file")
    lines = [str(fault) for fault in raised.value.faults]
    assert len(lines) == len(expected)
    assert all(part in line for part, line in zip(expected, lines, strict=True))


def test_whole_numbers_and_missing_optional_parts_are_fine() -> None:
    loaded = Schedule.from_json(content(hyperparameters={"lr": [1, 2]}, fixed=None, optimizer=None))
    assert loaded == Schedule(10, {"lr": (1.0, 2.0)})


@pytest.mark.parametrize("name", ["missing.json", "binary.json"])
def test_a_file_that_cannot_be_read_is_the_users_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=f"{name}: cannot be read"):
        Schedule.load(tmp_path / name)


def test_a_folder_without_a_schedule_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"schedule\.json: cannot be read"):
        load_schedule(tmp_path)
