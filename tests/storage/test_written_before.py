"""A run's folder that an earlier version wrote, killed within its third outer step: every command still takes it.

`data/written_before` is such a folder. Its config.yaml has a key that is gone since, `tangents.dtype`. The checkpoint
`inner-5` is whole and stands at inner step 35 of 120; `inner-6` was cut off before its manifest was in place.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reported_runs import page_of

from fds_dist.cli import main
from fds_dist.commands import DONE
from fds_dist.tracking.history import read_history
from fds_dist.tracking.records import OuterRecord

WRITTEN_BEFORE = Path(__file__).resolve().parents[1] / "data" / "written_before"

ROUNDING = 1e-5
"""Relative. Another processor, or another build of torch, rounds float32 sums differently. The whole of that rounding
is 3e-7 here, against a run in float64; this allows for 30 times as much."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run's folder, as runs/old in the current folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(WRITTEN_BEFORE, Path("runs/old"))


def numbers(value: Any) -> Iterator[float]:
    """All numbers in JSON values, in order."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield value


def results(record: OuterRecord) -> list[float]:
    """The numbers of a record that are the same whenever it is made."""
    content = json.loads(record.to_json())
    return list(numbers({key: content[key] for key in content if "seconds" not in key and "bytes" not in key}))


def test_it_is_resumed_from_its_inner_checkpoint_and_ends_as_a_fresh_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["optimize", "--resume", str(folder)]) == DONE
    assert "goes on from inner step 35 of 120" in capsys.readouterr().out
    assert not list(folder.glob("checkpoints/inner-*"))

    assert main(["optimize", str(WRITTEN_BEFORE / "config.yaml"), "name=fresh"]) == DONE
    for name in ("schedule.json", "schedule_best.json"):
        assert (folder / name).read_bytes() == (folder.with_name("fresh") / name).read_bytes()
    before = list(map(results, read_history(WRITTEN_BEFORE / "history.jsonl")))
    resumed, fresh = (
        list(map(results, read_history(path / "history.jsonl"))) for path in (folder, folder.with_name("fresh"))
    )
    assert resumed[:2] == before
    assert len(resumed) == len(fresh) == 3
    rounds_alike = fresh[:2] == before  # as the machine that wrote the folder; then all bits are the same
    assert resumed[2] == (fresh[2] if rounds_alike else pytest.approx(fresh[2], rel=ROUNDING))


def test_it_is_reported(folder: Path) -> None:
    page = page_of(folder).read_text(encoding="utf-8")
    assert "0.7213" in page  # the lowest validation loss


@pytest.mark.parametrize("form", ["snippet", "csv", "json"])
def test_it_is_exported(folder: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    assert main(["export", str(folder), "--format", form]) == DONE
    text = capsys.readouterr().out
    if form == "snippet":
        names: dict[str, Any] = {}
        exec(text, names)
        values = [names["value_at"]("momentum", step) for step in range(120)]
    elif form == "csv":
        values = [float(row["momentum"]) for row in csv.DictReader(text.splitlines())]
    else:
        values = json.loads(text)["hyperparameters"]["momentum"] * 120
    assert values == [0.7] * 120


def test_it_is_retrained(folder: Path) -> None:
    assert main(["retrain", str(folder), "epochs=1"]) == DONE
    (line,) = (folder / "retrain" / "0" / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["hyperparameters"] == {"lr": 0.15000000000000002, "momentum": 0.7, "weight_decay": 0.0}
