"""Trackers: the history is exact and survives crashes, the console is legible, the mirrors never stop a run."""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fds_dist.faults import UserError
from fds_dist.tracking import InnerBlock, OuterRecord, RunEnd, RunStart, Trackers
from fds_dist.tracking.console import PLAIN_INTERVAL, ConsoleTracker
from fds_dist.tracking.history import HistoryFile, read_history, steps_before
from fds_dist.tracking.tensorboard import TensorBoardTracker
from fds_dist.tracking.wandb_run import WandbTracker


def run_start(run_dir: Path, first_outer_step: int = 0, resumed: bool = False, **config: Any) -> RunStart:
    return RunStart(run_dir, config, 3, first_outer_step, 9, 2, "cpu", resumed)


def outer_record(outer_step: int, **changes: Any) -> OuterRecord:
    values: dict[str, Any] = {
        "outer_step": outer_step,
        "horizon": 200,
        "hyperparameters": {"lr": [0.1 + 0.2, 1e-300], "momentum": [0.5]},
        "hypergradients": {"lr": [-1.25, 3.0], "momentum": [1 / 3]},
        "val_loss": 2.3,
        "val_accuracy": 0.11,
        "seconds": 4.2,
        "world_size": 2,
        "step_sizes": {"lr": [0.1, 0.05], "momentum": [0.1]},
        "events": ["momentum: the sign changed"],
    }
    return OuterRecord(**(values | changes))


def inner_block(outer_step: int, stop: int, horizon: int = 200, live: int = 4) -> InnerBlock:
    return InnerBlock(outer_step, range(stop - 10, stop), horizon, live, 1.5, {"lr": 0.3})


def run_end(run_dir: Path, status: str = "finished", message: str = "") -> RunEnd:
    return RunEnd(status, message, {"lr": [0.25, 0.5], "momentum": [0.9]}, 1, 0.75, 0.625, run_dir)


# --- records ---


def test_a_record_survives_its_line_exactly() -> None:
    record = outer_record(4)
    line = record.to_json()
    assert "\n" not in line
    assert OuterRecord.from_json(line) == record


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
        ({"outer_step": "1"}, "'1' is not a whole number"),
        ({"val_loss": "low"}, "'low' is not a number"),
        ({"hyperparameters": [1.0]}, "wrong type"),
        ({"hyperparameters": {"lr": 1.0}}, "wrong type"),
    ],
)
def test_a_record_of_the_wrong_type_is_a_value_error(change: dict[str, Any], message: str) -> None:
    line = json.dumps(json.loads(outer_record(0).to_json()) | change)
    with pytest.raises(ValueError, match=message):
        OuterRecord.from_json(line)


# --- history ---


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


def write_history(path: Path, steps: int, torn: str = "") -> None:
    path.write_text("".join(outer_record(step).to_json() + "\n" for step in range(steps)) + torn)


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


# --- forwarding ---


class Recorder:
    """Remembers what it is told, and raises where it is asked to."""

    def __init__(self, fails_in: str = "", required: bool = False) -> None:
        self.required = required
        self.fails_in = fails_in
        self.told: list[tuple[str, Any]] = []

    def _hear(self, method: str, argument: Any) -> None:
        self.told.append((method, argument))
        if method == self.fails_in:
            raise OSError("no space\non the device")

    def start(self, run: RunStart) -> None:
        self._hear("start", run)

    def inner(self, block: InnerBlock) -> None:
        self._hear("inner", block)

    def outer(self, record: OuterRecord) -> None:
        self._hear("outer", record)

    def note(self, message: str) -> None:
        self._hear("note", message)

    def finish(self, end: RunEnd) -> None:
        self._hear("finish", end)


def whole_run(trackers: Trackers, run_dir: Path) -> list[tuple[str, Any]]:
    said = [
        ("start", run_start(run_dir)),
        ("inner", inner_block(0, 10)),
        ("outer", outer_record(0)),
        ("note", "look here"),
        ("finish", run_end(run_dir)),
    ]
    for method, argument in said:
        getattr(trackers, method)(argument)
    return said


def test_every_tracker_hears_everything(tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    said = whole_run(Trackers([first, second]), tmp_path)
    assert first.told == second.told == said


@pytest.mark.parametrize("method", ["start", "inner", "outer", "note", "finish"])
def test_a_failing_tracker_is_reported_once_and_dropped(tmp_path: Path, method: str) -> None:
    before, failing, after = Recorder(), Recorder(fails_in=method), Recorder()
    said = whole_run(Trackers([before, failing, after]), tmp_path)
    assert failing.told[-1][0] == method
    for other in (before, after):
        assert [item for item in other.told if item in said] == said
        (extra,) = [item for item in other.told if item not in said]
        assert extra == ("note", "Recorder failed and is off for the rest of the run: no space on the device")


def test_two_failing_trackers_do_not_hide_each_other(tmp_path: Path) -> None:
    healthy = Recorder()
    whole_run(Trackers([Recorder(fails_in="inner"), Recorder(fails_in="note"), healthy]), tmp_path)
    assert sum(method == "note" and "is off" in message for method, message in healthy.told) == 2


def test_the_failure_of_a_required_tracker_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"):
        whole_run(Trackers([Recorder(fails_in="outer", required=True)]), tmp_path)
    assert HistoryFile(tmp_path / "history.jsonl").required


def test_other_ranks_track_nothing(tmp_path: Path) -> None:
    whole_run(Trackers([]), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- console ---


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def printed(terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, force_interactive=terminal, width=width, color_system=None), file


def screen(text: str) -> list[str]:
    """What stays on a terminal's screen: understands newlines, returns, cursor up and erased lines."""
    rows, row, column = [""], 0, 0
    for count, command, character in re.findall(r"\x1b\[\??(\d*)(?:;\d+)*([A-Za-z])|([^\x1b])", text):
        if command == "A":
            row -= int(count or 1)
        elif command == "K":
            rows[row] = ""
        elif character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif character:
            rows[row] = rows[row].ljust(column)[:column] + character + rows[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in rows]


def test_plain_output_has_a_line_per_outer_step_and_few_progress_lines(tmp_path: Path) -> None:
    console, file = printed(terminal=False)
    clock = Clock()
    tracker = ConsoleTracker(console, clock)
    tracker.start(run_start(tmp_path))
    for block in range(1, 21):
        clock.now += PLAIN_INTERVAL / 4
        tracker.inner(inner_block(0, 10 * block))
    tracker.outer(outer_record(0))
    tracker.finish(run_end(tmp_path, message="all step sizes are small"))
    start, *progress, outer, end = file.getvalue().splitlines()
    assert all(fact in start for fact in (str(tmp_path), "cpu, 2 ranks", "tangents 9", "outer steps 3"))
    assert len(progress) == 5  # 20 blocks, a quarter of the interval apart
    assert all(line.startswith("outer step 0, inner step ") for line in progress)
    assert outer == (
        "outer step 0 done: horizon 200, val loss 2.3, val accuracy 11.0%, 4.2s; lr 0.3 1e-300; momentum 0.5"
    )
    for fact in ("finished", "all step sizes are small", "62.5%", "0.75", "outer step 1", str(tmp_path)):
        assert fact in end
    assert file.getvalue().isascii()
    assert "\x1b" not in file.getvalue()


def test_progress_says_how_long_it_takes(tmp_path: Path) -> None:
    console, file = printed(terminal=False)
    clock = Clock()
    tracker = ConsoleTracker(console, clock)
    tracker.start(run_start(tmp_path, inner={"epochs": [1, 10, 10]}))
    clock.now += 20  # 10 of 200 steps in 20 s: 380 s for the rest, then two horizons of ten times 400 s each
    tracker.inner(inner_block(0, 10))
    assert "0.5 steps/s, 6m20s left, run about 2h19m" in file.getvalue()


def test_the_last_horizon_is_the_rest_of_the_run(tmp_path: Path) -> None:
    console, file = printed(terminal=False)
    clock = Clock()
    tracker = ConsoleTracker(console, clock)
    tracker.start(run_start(tmp_path, first_outer_step=2, resumed=True))
    clock.now += 1
    tracker.inner(inner_block(2, 110))
    assert "resumed at 2" in file.getvalue()
    assert "10 steps/s, 9.0s left\n" in file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_texts_are_not_taken_for_markup(tmp_path: Path, terminal: bool) -> None:
    console, file = printed(terminal, width=200)
    tracker = ConsoleTracker(console)
    folder = tmp_path / "[red]run[/blue]"
    tracker.start(run_start(folder))
    tracker.note("bad [bold]bucket[/nothing]")
    tracker.finish(run_end(folder, message="stopped [/]"))
    text = "".join(screen(file.getvalue()))
    assert "bad [bold]bucket[/nothing]" in text
    assert "stopped [/]" in text
    assert text.count("[red]run[/blue]") == 2


def test_a_terminal_shows_a_table_and_no_leftovers(tmp_path: Path) -> None:
    console, file = printed(terminal=True)
    tracker = ConsoleTracker(console)
    run_dir = Path("runs/digits-lenet-20260102-030405")
    tracker.start(run_start(run_dir))
    many = {"lr": [0.1 / (bucket + 1) for bucket in range(40)], "momentum": [0.5] * 7, "weight_decay": [3e-4]}
    for step in range(3):
        tracker.inner(inner_block(step, 100))
        tracker.outer(outer_record(step, hyperparameters=many, val_accuracy=None if step else 0.5))
    tracker.finish(run_end(run_dir))
    lines = screen(file.getvalue())
    assert max(map(len, lines)) <= 80
    assert "inner" not in "".join(lines)
    assert not any(re.search(r"tangents live|\(\d of 3\)", line) for line in lines)  # the live line is gone
    rows = [line for line in lines if re.match(r"\s+\d\s+200 ", line)]
    assert [row.split()[:4] for row in rows] == [
        ["0", "200", "2.3", "50.0%"],
        *(["1", "200", "2.3", "-"], ["2", "200", "2.3", "-"]),
    ]
    assert all(re.search(r"lr 0\.1 0\.05 .*… .*0\.0025$", row) for row in rows)
    assert sum("momentum 0.5 ×7 · weight_decay 0.0003" in line for line in lines) == 3
    assert any("val accuracy 62.5%, val loss 0.75, at outer step 1" in line for line in lines)
    assert any("schedule.json" in line for line in lines)


def test_the_live_line_says_where_the_run_is(tmp_path: Path) -> None:
    console, file = printed(terminal=True)
    clock = Clock()
    tracker = ConsoleTracker(console, clock)
    tracker.start(run_start(tmp_path))
    clock.now += 10
    tracker.inner(inner_block(0, 100))
    tracker.note("look here")  # a print shows the live line again below it
    lines = screen(file.getvalue())
    tracker.finish(run_end(tmp_path, "interrupted"))
    assert " note: look here" in lines
    bar = next(line for line in lines if line.startswith(" outer step 0 (1 of 3)"))
    assert bar.endswith("100/200")
    assert any("4/9 tangents live · loss 1.5 · 1 steps/s · 1m40s left · run about 8m20s" in line for line in lines)
    assert any("interrupted" in line for line in screen(file.getvalue()))


# --- wandb ---


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No WANDB_* variables, an empty home; returns a run folder."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["fds-dist", "task.api_key=hidden-value"])
    run_dir = tmp_path / "runs" / "digits-1"
    run_dir.mkdir(parents=True)
    return run_dir


def wandb_records(path: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file: a 7-byte header, then a LevelDB log.

    The log is cut into blocks of 32 KiB. A chunk is a header (checksum, length, kind) and data; a record is one
    chunk of kind 1, or a first (2), middle (3) and last (4) ones. Fewer than 7 bytes at a block's end are padding.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, data = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        data += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(data)
            yield record
            data = b""


def logged(run_dir: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """All records of the run's only .wandb file, and the rows that were logged."""
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    records: list[Any] = []
    for _ in range(600):  # wandb's own process writes the file, perhaps after `finish` has returned: 30 s are plenty
        records = list(wandb_records(path))
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(0.05)
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    return records, rows


def test_an_offline_wandb_file_holds_the_run(clean_environment: Path) -> None:
    pytest.importorskip("wandb")
    run_dir = clean_environment
    tracker = WandbTracker("offline", project="mine", group="sweep", tags=["a"])
    config = {"seed": 0, "task": {"name": "digits", "api_key": "hidden-value"}, "auth_TOKEN": ["hidden-value"]}
    tracker.start(run_start(run_dir, **config))
    tracker.inner(inner_block(0, 100))
    tracker.outer(outer_record(0, hypergradients={"lr": [math.nan, 3.0], "momentum": [math.inf]}))
    tracker.inner(inner_block(1, 50))
    tracker.outer(outer_record(1))
    tracker.finish(run_end(run_dir))

    records, rows = logged(run_dir)
    inner = [row for row in rows if "inner_step" in row]
    outer = [row for row in rows if "outer_step" in row]
    assert [row["inner_step"] for row in inner] == [100, 250]  # counts on after the first horizon's 200 steps
    assert inner[0].items() >= {"inner/train_loss": 1.5, "inner/live_tangents": 4, "inner/lr": 0.3}.items()
    assert [row["outer_step"] for row in outer] == [0, 1]
    assert (
        outer[1].items()
        >= {
            "outer/val_loss": 2.3,
            "outer/val_accuracy": 0.11,
            "outer/seconds": 4.2,
            "outer/horizon": 200,
            "hyperparameter/lr/0": 0.1 + 0.2,
            "hyperparameter/lr/1": 1e-300,
            "hyperparameter/momentum/0": 0.5,
            "hypergradient/lr/0": -1.25,
            "hypergradient/lr/1": 3.0,
            "hypergradient/momentum/0": 1 / 3,
        }.items()
    )
    assert [name for name in outer[0] if name.startswith("hypergradient/")] == ["hypergradient/lr/1"]  # finite ones

    steps = {record.metric.glob_name: record.metric.step_metric for record in records if record.HasField("metric")}
    assert steps == {
        **{f"{kind}/*": "outer_step" for kind in ("outer", "hyperparameter", "hypergradient")},
        "inner/*": "inner_step",
    }
    (run,) = [record.run for record in records if record.HasField("run")]
    shown = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert shown.items() >= {"seed": 0, "task": {"name": "digits", "api_key": "***"}, "auth_TOKEN": "***"}.items()
    assert (run.project, run.run_group, list(run.tags), run.display_name) == ("mine", "sweep", ["a"], "digits-1")
    updates = [update for record in records if record.HasField("summary") for update in record.summary.update]
    summary = {update.key: json.loads(update.value_json) for update in updates if update.key}
    assert summary.items() >= {"best_val_accuracy": 0.625, "best_val_loss": 0.75}.items()

    (table,) = run_dir.glob("wandb/offline-run-*/files/media/table/*.table.json")
    assert [row["schedule/path"] for row in rows if "schedule/path" in row] == [f"media/table/{table.name}"]
    content = json.loads(table.read_text())
    assert content["columns"] == ["hyperparameter", "bucket", "value", "start_fraction", "end_fraction"]
    assert content["data"] == [["lr", 0, 0.25, 0.0, 0.5], ["lr", 1, 0.5, 0.5, 1.0], ["momentum", 0, 0.9, 0.0, 1.0]]
    # the command line holds the secret too
    assert not any(b"hidden-value" in path.read_bytes() for path in run_dir.rglob("*") if path.is_file())


def test_a_resumed_run_keeps_its_id_and_counts_on(clean_environment: Path) -> None:
    pytest.importorskip("wandb")
    run_dir = clean_environment
    first = WandbTracker("offline")
    first.start(run_start(run_dir))
    first.finish(run_end(run_dir, "interrupted"))
    run_id = (run_dir / "wandb_run_id.txt").read_text().strip()
    (old,) = run_dir.glob("wandb/offline-run-*")
    old.rename(run_dir / "earlier")
    write_history(run_dir / "history.jsonl", 2)
    second = WandbTracker("offline")
    second.start(run_start(run_dir, first_outer_step=2, resumed=True))
    second.inner(inner_block(2, 10))
    second.finish(run_end(run_dir))
    records, rows = logged(run_dir)
    (run,) = [record.run for record in records if record.HasField("run")]
    assert run.run_id == run_id == (run_dir / "wandb_run_id.txt").read_text().strip()
    assert [row["inner_step"] for row in rows if "inner_step" in row] == [410]


ONLINE = """
import sys
from pathlib import Path
from fds_dist.tracking import OuterRecord, RunEnd, RunStart, Trackers
from fds_dist.tracking.console import ConsoleTracker
from fds_dist.tracking.wandb_run import WandbTracker
run_dir = Path(sys.argv[1])
trackers = Trackers([ConsoleTracker(), WandbTracker("online")])
trackers.start(RunStart(run_dir, {}, 1, 0, 1, 1, "cpu", False))
trackers.outer(OuterRecord(0, 10, {"lr": [0.5]}, {"lr": [1.0]}, 2.0, None, 1.0, 1, {}))
trackers.finish(RunEnd("finished", "", None, 0, 2.0, None, run_dir))
"""


@pytest.mark.parametrize("account", [{}, {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}])
def test_online_without_an_account_or_a_server_goes_on_offline(
    clean_environment: Path, account: dict[str, str]
) -> None:
    pytest.importorskip("wandb")
    run_dir = clean_environment
    result = subprocess.run(
        [sys.executable, "-c", ONLINE, str(run_dir)],
        env=os.environ | account,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,  # never reached: wandb's own limit for a start is 5 s
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == 4  # start, one note, outer step, end
    (folder,) = run_dir.glob("wandb/offline-run-*")
    assert lines[1].startswith("note: wandb cannot go online")
    assert lines[1].endswith(f"wandb sync {folder}")
    assert any(row.get("outer/val_loss") == 2.0 for row in logged(run_dir)[1])


def test_without_wandb_there_is_one_note(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    other = Recorder()
    said = whole_run(Trackers([WandbTracker("online"), other]), clean_environment)
    (extra,) = [item for item in other.told if item not in said]
    assert "pip install wandb" in extra[1]
    assert list(clean_environment.iterdir()) == []


def test_disabled_wandb_is_not_even_imported(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    other = Recorder()
    assert whole_run(Trackers([WandbTracker(), other]), clean_environment) == other.told
    assert list(clean_environment.iterdir()) == []


def test_the_environment_decides_what_the_config_leaves_open(
    clean_environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "from-environment")
    monkeypatch.setenv("WANDB_NAME", "named")
    monkeypatch.setenv("WANDB_RUN_ID", "id-of-mine")
    tracker = WandbTracker()
    tracker.start(run_start(clean_environment))
    tracker.finish(run_end(clean_environment))
    (run,) = [record.run for record in logged(clean_environment)[0] if record.HasField("run")]
    assert (run.project, run.display_name, run.run_id) == ("from-environment", "named", "id-of-mine")


def test_an_unknown_mode_is_the_users_error(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"tracking\.wandb\.mode: 'on' is not a mode; expected online"):
        WandbTracker("on")
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(UserError, match="WANDB_MODE: 'of' is not a mode"):
        WandbTracker()


# --- TensorBoard ---


def test_tensorboard_files_hold_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_history(tmp_path / "history.jsonl", 1)
    tracker = TensorBoardTracker()
    tracker.start(run_start(tmp_path, first_outer_step=1, resumed=True))
    tracker.inner(inner_block(1, 100))
    tracker.outer(outer_record(1, hypergradients={"lr": [math.nan, 3.0]}))
    tracker.inner(inner_block(2, 50))
    tracker.finish(run_end(tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    points = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert points["inner/train_loss"] == [(300, 1.5), (450, 1.5)]  # after one horizon of 200 steps, then after two
    assert points["hyperparameter/momentum/0"] == [(1, 0.5)]
    assert points["hypergradient/lr/1"] == [(1, 3.0)]
    assert "hypergradient/lr/0" not in points


def test_without_tensorboard_there_is_one_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    other = Recorder()
    said = whole_run(Trackers([TensorBoardTracker(), other]), tmp_path)
    (extra,) = [item for item in other.told if item not in said]
    assert "pip install 'fds-dist[tensorboard]'" in extra[1]


# --- imports ---


def test_nothing_heavy_is_imported() -> None:
    modules = "console, history, records, tensorboard, wandb_run"
    code = f"import sys, fds_dist.run_folder; from fds_dist.tracking import {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "fds_dist.tracking.wandb_run" in loaded
    assert not {"torch", "numpy", "wandb", "tensorboard"} & set(loaded)
