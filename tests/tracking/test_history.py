"""Records and `history.jsonl`: exact, and whole after a crash."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from events import outer_record, run_end, run_start, write_history

from fds_dist.common.faults import UserError
from fds_dist.tracking.history import HistoryFile, read_history, steps_before
from fds_dist.tracking.records import OuterRecord


def test_a_record_survives_its_line_exactly() -> None:
    record = outer_record(4)
    line = record.to_json()
    assert "\n" not in line
    assert OuterRecord.from_json(line) == record


def test_what_was_not_measured_is_not_written() -> None:
    measured = {"rank_seconds": [4.0, 1.5], "rank_peak_bytes": [2**30, 2**29], "hypergradient_spread": {"lr": [0.5]}}
    record = outer_record(0, **measured)
    assert OuterRecord.from_json(record.to_json()) == record
    assert not set(measured) & set(json.loads(outer_record(0).to_json()))


def test_a_line_starts_with_the_documented_keys_in_order() -> None:
    keys = list(json.loads(outer_record(0).to_json()))
    assert keys[:8] == [
        *["outer_step", "horizon", "hyperparameters", "hypergradients"],
        *["val_loss", "val_accuracy", "seconds", "world_size"],
    ]


def test_nonfinite_numbers_are_null_in_the_line_and_nan_when_read() -> None:
    gradients = {"lr": [math.nan, math.inf], "momentum": [-math.inf]}
    record = outer_record(0, hypergradients=gradients, val_loss=math.nan, val_accuracy=None)
    data = json.loads(record.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["hypergradients"] == {"lr": [None, None], "momentum": [None]}
    again = OuterRecord.from_json(record.to_json())
    assert all(math.isnan(value) for values in again.hypergradients.values() for value in values)
    assert math.isnan(again.val_loss)
    assert again.val_accuracy is None


def test_later_versions_may_add_keys_and_the_documented_ones_are_enough() -> None:
    data = json.loads(outer_record(0).to_json())
    del data["step_sizes"], data["events"]
    assert OuterRecord.from_json(json.dumps(data | {"new": [1]})) == outer_record(0, step_sizes={}, events=[])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outer_step": "1"}, "outer_step: '1' is not a whole number"),
        ({"val_loss": "low"}, "val_loss: 'low' is not a number"),
        ({"hyperparameters": [1.0]}, r"hyperparameters: \[1.0\] is not an object"),
        ({"hyperparameters": {"lr": 1.0}}, "hyperparameters.lr: 1.0 is not a list"),
    ],
)
def test_a_record_of_the_wrong_type_is_a_value_error(change: dict[str, Any], message: str) -> None:
    line = json.dumps(json.loads(outer_record(0).to_json()) | change)
    with pytest.raises(ValueError, match=message):
        OuterRecord.from_json(line)


def test_history_has_one_line_per_outer_step(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = HistoryFile(path)
    history.start(run_start(tmp_path))
    for step in range(3):
        history.outer(outer_record(step))
        assert read_history(path) == [outer_record(done) for done in range(step + 1)]  # there before `finish`
    history.finish(run_end(tmp_path))
    assert path.read_bytes().count(b"\n") == 3
    assert steps_before(tmp_path, 2) == 400


@pytest.mark.parametrize("torn", ["", '{"outer_step": 3, "hor', '{"outer_step": 3}', "\0\0\0"])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "history.jsonl"
    write_history(path, 3, torn)
    assert read_history(path) == [outer_record(step) for step in range(3)]


@pytest.mark.parametrize("torn", ["", '{"outer_step": 3, "hor'])
@pytest.mark.parametrize("first", [0, 2, 3])
def test_a_resumed_run_has_each_outer_step_once(tmp_path: Path, torn: str, first: int) -> None:
    path = tmp_path / "history.jsonl"
    write_history(path, 3, torn)
    history = HistoryFile(path)
    history.start(run_start(tmp_path, first_outer_step=first, resumed=True))
    for step in range(first, 5):
        history.outer(outer_record(step, seconds=9.0))
    history.finish(run_end(tmp_path))
    assert read_history(path) == [outer_record(step, **({} if step < first else {"seconds": 9.0})) for step in range(5)]


def test_a_run_that_died_before_its_first_line_can_be_resumed(tmp_path: Path) -> None:
    history = HistoryFile(tmp_path / "history.jsonl")
    history.start(run_start(tmp_path, resumed=True))
    history.outer(outer_record(0))
    assert read_history(tmp_path / "history.jsonl") == [outer_record(0)]


def test_a_new_run_does_not_touch_another_ones_history(tmp_path: Path) -> None:
    write_history(tmp_path / "history.jsonl", 1)
    with pytest.raises(FileExistsError):
        HistoryFile(tmp_path / "history.jsonl").start(run_start(tmp_path))
    assert len(read_history(tmp_path / "history.jsonl")) == 1


@pytest.mark.parametrize("bad", ["{", "[]", '{"outer_step": 1}', "", "\udce9"])
def test_any_other_bad_line_is_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "history.jsonl"
    content = f"{outer_record(0).to_json()}\n{bad}\n{outer_record(2).to_json()}\n"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"history\.jsonl, line 2 is not a record"):
        read_history(path)


def test_a_missing_history_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_history(tmp_path / "history.jsonl")
