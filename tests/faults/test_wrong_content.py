"""Records whose content is wrong though their form or their checksum is right: refused by name, never a traceback."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import DEEP, bit_flips, content, cut, mutations
from events import outer_record

from fds_dist.commands.compare.job import Trial
from fds_dist.commands.compare.results import FORMAT, Comparison
from fds_dist.commands.compare.rivals.study import Memory
from fds_dist.commands.retrain.checkpoints import Written
from fds_dist.commands.retrain.records import EpochRecord
from fds_dist.commands.sweep.local import JobResult
from fds_dist.common.faults import UserError
from fds_dist.common.records import from_line, from_values
from fds_dist.outer.judge import JudgedRun
from fds_dist.outer.meaning import Meaning
from fds_dist.outer.progress import OuterProgress
from fds_dist.schedule.schedule import Schedule
from fds_dist.storage.checkpoints import load_checkpoint, save_checkpoint
from fds_dist.tracking.records import OuterRecord
from fds_dist.tracking.verdict import Verdict

Read = Callable[[Any], object]

# --- every part of every record, replaced by everything that is wrong there ---

ELEMENT = [0.02, 1, 0.5, 0.25, 2]
PROGRESS = {
    **{"outer_step": 2, "values": [0.1, 0.2], "state": {"elements": [ELEMENT, ELEMENT], "failures": 0}, "horizon": 4},
    **{"converged": False, "best": [1, [0.1, 0.1], 0.5, None], "first_val_loss": 0.7, "seconds": 1.5},
}
LEARNED = {"name": "lr", "buckets": 2, "size": 1, "init": [0.1, 0.1], "shape": "constant", "scale": "log", "step": 0.7}
JUDGED = {"seed": 0, "val_loss": 0.5, "val_accuracy": 0.9, "test_accuracy": None, "values": [0.1, 0.2], "setting": "a"}
CANDIDATE = {"val_losses": [0.5], "val_loss": 0.5, "val_loss_error": None, "val_accuracy": 0.9, "outer_step": 0}
EPOCH = {
    **{"seed": 0, "epoch": 0, "step": 4, "train_loss": 0.5, "test_loss": 0.6, "test_accuracy": 0.9},
    **{"hyperparameters": {"lr": 0.1}, "seconds": 1.0, "world_size": 1, "test_metrics": {"f1": 0.5}},
}
INCUMBENT = {"number": 0, "hyperparameters": {"lr": [0.1]}, "cost": 4.0, "seconds": 1.0, "own_loss": 0.5}
METHOD = {"method": "fds", "repetition": 0, "trials": 1, "cost": 4.0, "seconds": 1.0}
RECORDS: dict[str, tuple[Any, Read]] = {
    "outer checkpoint": (PROGRESS, OuterProgress.from_dict),
    "names in it": (
        {"learned": [LEARNED], "rule": "adam", "groups": [["bias", "b$"]]},
        lambda values: from_values(Meaning, values),
    ),
    "history.jsonl": (json.loads(outer_record(0).to_json()), lambda values: OuterRecord.from_json(json.dumps(values))),
    "schedule.json": (
        json.loads(Schedule(4, {"lr": (0.1, 0.2)}, {"momentum": 0.9}, {"name": "sgd", "groups": {"a": "b"}}).to_json()),
        lambda values: Schedule.from_json(json.dumps(values)).at(3),
    ),
    "judged.json": (
        {"result": "best", "seeds": 1, "horizon": 4, "candidates": {"best": CANDIDATE, "start": CANDIDATE}},
        lambda values: from_values(Verdict, values),
    ),
    "judge.jsonl": (JUDGED, lambda values: from_values(JudgedRun, values)),
    "retrain's history": (EPOCH, lambda values: from_values(EpochRecord, values)),
    "DeepSpeed's files": (
        {"folder": "deepspeed-1", "world_size": 2, "files": {"a/b": "00"}},
        lambda values: from_values(Written, values),
    ),
    "a sweep's results": (
        {"job": 0, "values": {}, "status": "finished", "exit_status": 0, "seconds": 1.0, "run_dir": "runs/a"},
        lambda values: from_values(JobResult, values),
    ),
    "a comparison's trials": (
        {
            **{"number": 0, "values": [0.1], "val_loss": 0.5, "val_accuracy": 0.9, "steps": 4, "cost": 4.0},
            **{"seconds": 1.0, "state": {"coordinates": [0.1]}},
        },
        lambda values: from_values(Trial, values),
    ),
    "what a study remembers": (
        {"coordinates": [0.1], "pruned": False, "intermediate": {"1": 0.5}, "rungs": {"completed_rung_0": 0.5}},
        lambda values: from_values(Memory, values),
    ),
    "compare.json": (
        {
            **{"format": FORMAT, "horizon": 4, "budget": 8.0, "world_size": 1, "judge_seeds": 1},
            **{"estimator": "forward", "search_space": {"lr": {"low": 0.1}}},
            "runs": [{**METHOD, "incumbents": [{**INCUMBENT, "judgements": [JUDGED]}]}],
        },
        lambda values: from_values(Comparison, values).to_json(),
    ),
}


@pytest.mark.parametrize(("values", "read"), RECORDS.values(), ids=RECORDS.keys())
def test_any_wrong_part_is_refused_or_harmless_and_never_another_error(values: Any, read: Read) -> None:
    read(values)
    refused = count = 0
    for what, wrong in mutations(values):
        count += 1
        try:
            read(wrong)
        except (ValueError, UserError) as error:
            assert str(error) and "\n" not in str(error), what
            refused += 1
    assert refused > count / 2, f"{refused} of {count}"  # the rest are defaults, other finite numbers, other names


# --- what a reader would take for something else ---


def of(name: str, path: str, value: Any) -> Any:
    return pytest.param(name, path, value, id=f"{name}: {path} as {str(value)[:20]}")


REFUSED = [
    *(of("outer checkpoint", "values", value) for value in ([0.1], [0.1, math.nan], [0.1, None], "ab")),
    *(of("outer checkpoint", "outer_step", value) for value in (-1, 1.5, True, "2")),
    of("outer checkpoint", "horizon", 0),
    of("outer checkpoint", "best", [2, [0.1, 0.1], 0.5, None]),
    of("outer checkpoint", "best", [1, [0.1], 0.5, None]),
    of("outer checkpoint", "best", [1, [0.1, 0.1], math.inf, None]),
    *(of("outer checkpoint", "state.elements.0", [step, 1, 0.0, 0.0, 0]) for step in (-0.1, math.nan, None)),
    *(of("outer checkpoint", "state.elements.0", [0.1, sign, 0.0, 0.0, 0]) for sign in (2, 0.5)),
    of("outer checkpoint", "state.elements.0", [0.1, 1, 0.0, -1.0, 0]),
    of("outer checkpoint", "state.elements", [ELEMENT]),
    of("outer checkpoint", "state.failures", -1),
    of("names in it", "learned.0.buckets", 0),
    of("names in it", "learned.0.init", [math.nan, 0.1]),
    *(of("history.jsonl", "hyperparameters", {"lr": row}) for row in ([None], [math.nan], [], [[1.0], [1.0, 2.0]])),
    *(of("history.jsonl", "outer_step", value) for value in (-1, 0.5)),
    of("history.jsonl", "horizon", 0),
    *(of("schedule.json", "hyperparameters", {"lr": row}) for row in ([None], [math.nan], [], 0.1)),
    of("schedule.json", "optimizer", {"name": ["sgd"]}),
    of("schedule.json", "optimizer", {"groups": {"a": 1}}),
    of("schedule.json", "optimizer", {"hyperparameters": 3}),
    of("judged.json", "candidates.best.val_losses", []),
    of("judge.jsonl", "values", [math.nan]),
    of("retrain's history", "step", 0),
    of("retrain's history", "hyperparameters", {"lr": None}),
    *(of("DeepSpeed's files", "folder", name) for name in ("../other", "deepspeed-1/..", "")),
    *(of("DeepSpeed's files", "files", {name: "00"}) for name in ("../a", "/etc/passwd", "")),
    of("a sweep's results", "status", "done"),
    of("a comparison's trials", "values", [math.inf]),
    of("a comparison's trials", "cost", -1.0),
    of("what a study remembers", "intermediate", {"one": 0.5}),
    of("compare.json", "runs.0.incumbents.0.judgements", []),
]


@pytest.mark.parametrize(("name", "path", "value"), REFUSED)
def test_what_would_be_taken_for_something_else_is_refused(name: str, path: str, value: Any) -> None:
    values, read = RECORDS[name]
    values = json.loads(json.dumps(values))
    *above, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    parent = values
    for key in above:
        parent = parent[key]
    parent[last] = value
    with pytest.raises((ValueError, UserError)):
        read(values)


@pytest.mark.parametrize("kind", [OuterRecord, JudgedRun, Verdict, dict[str, Any]])
def test_what_is_nested_too_deeply_is_not_json_that_is_read(kind: type) -> None:
    with pytest.raises(ValueError):
        from_line(kind, DEEP)
    with pytest.raises(UserError):
        Schedule.from_json(DEEP.decode())


# --- the folder of checkpoints ---


def test_each_of_a_hundred_flipped_bits_in_an_outer_checkpoint_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {**PROGRESS, "outer_step": 1}, keep=2)
    path = save_checkpoint(tmp_path, 2, PROGRESS, keep=2)
    whole, count = path.read_bytes(), 0
    for damage in bit_flips(len(whole), 100):
        damage(path)
        warnings = list[str]()
        state = load_checkpoint(tmp_path, warnings.append)
        count += state is not None and state["outer_step"] == 1 and len(warnings) == 1 and path.name in warnings[0]
        path.write_bytes(whole)
    assert count == 100


def test_a_damaged_checkpoint_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    cut(0.5)(tmp_path / "outer_0002.json")
    save_checkpoint(tmp_path, 3, {"step": 3}, keep=2)
    content(b"")(tmp_path / "outer_0003.json")
    assert load_checkpoint(tmp_path, lambda line: None) == {"step": 1}
    for step in (4, 5):
        save_checkpoint(tmp_path, step, {"step": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outer_0004.json", "outer_0005.json"]
