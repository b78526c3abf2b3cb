"""Trackers as a whole: all hear everything, a mirror that fails never stops a run, nothing heavy is imported."""

from __future__ import annotations

import errno
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from events import Recorder, inner_block, outer_record, run_end, run_start, whole_run, write_history

from fds_dist.tracking.history import HistoryFile
from fds_dist.tracking.records import OuterRecord
from fds_dist.tracking.tensorboard import TensorBoardTracker
from fds_dist.tracking.trackers import Tracker, Trackers


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
        assert extra == ("note", "Recorder failed and stays off for the rest of the run: no space on the device")


def test_two_failing_trackers_do_not_hide_each_other(tmp_path: Path) -> None:
    healthy = Recorder()
    whole_run(Trackers([Recorder(fails_in="inner"), Recorder(fails_in="note"), healthy]), tmp_path)
    assert sum(method == "note" and "stays off" in message for method, message in healthy.told) == 2


def test_a_tracker_tells_a_person_something_through_all_of_them() -> None:
    first, second, alone = Recorder(), Recorder(), Recorder()
    Trackers([first, second])
    first.tell("sent later")
    alone.tell("nobody listens")
    assert first.told == second.told == [("note", "sent later")]
    assert alone.told == []


def test_a_tracker_may_listen_to_a_part_only(tmp_path: Path) -> None:
    class Epochs(Tracker):
        def outer(self, record: OuterRecord) -> None:
            heard.append(record)

    heard: list[OuterRecord] = []
    other = Recorder()
    said = whole_run(Trackers([Epochs(), other]), tmp_path)
    assert heard == [argument for method, argument in said if method == "outer"]
    assert other.told == said


def test_the_failure_of_a_required_tracker_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"):
        whole_run(Trackers([Recorder(fails_in="outer", required=True)]), tmp_path)
    assert HistoryFile(tmp_path / "history.jsonl").required


def test_other_ranks_track_nothing(tmp_path: Path) -> None:
    whole_run(Trackers([]), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_files_hold_the_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_history(tmp_path / "history.jsonl", 1)
    tracker = TensorBoardTracker()
    tracker.start(run_start(tmp_path, first_outer_step=1, resumed=True, task={"api_key": "hidden-value"}))
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
    assert points["step_size/momentum/0"] == [(1, pytest.approx(0.1))]  # float32
    (picture,) = events.Images("outer/schedule")
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    (config,) = events.Tensors("config")
    (text,) = config.tensor_proto.string_val
    assert b'"api_key": "***"' in text
    for outer_step, at in ((1, 100), (2, 50)):
        curve = EventAccumulator(str(tmp_path / f"tensorboard/outer_step_{outer_step}"))
        curve.Reload()
        assert [(event.step, event.value) for event in curve.Scalars("inner_curve/train_loss")] == [(at, 1.5)]


def test_on_a_full_disk_tensorboard_is_dropped_with_one_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own writer's thread would end with a traceback, which pytest makes an error."""
    record_writer = pytest.importorskip("tensorboard.summary.writer.record_writer")

    def full(writer: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(record_writer.RecordWriter, "write", full)
    other = Recorder()
    said = whole_run(Trackers([TensorBoardTracker(), other]), tmp_path)
    (extra,) = [item for item in other.told if item not in said]
    assert re.search(r"TensorBoardTracker failed .*: cannot write \S*events\S*: No space left on device", extra[1])


def test_without_tensorboard_there_is_one_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    other = Recorder()
    said = whole_run(Trackers([TensorBoardTracker(), other]), tmp_path)
    (extra,) = [item for item in other.told if item not in said]
    assert "pip install 'fds-dist[tensorboard]'" in extra[1]


def test_nothing_heavy_is_imported() -> None:
    modules = "console, history, records, tensorboard, wandb_run, wandb_session"
    code = f"import sys, fds_dist.storage.run_folder; from fds_dist.tracking import {modules}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "fds_dist.tracking.wandb_run" in loaded
    assert not {"torch", "numpy", "wandb", "tensorboard"} & set(loaded)
