"""Files of a run's folder that a disk or a hand has changed: refused by name or passed over, never a traceback."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from blob_searches import CONFIG
from damage import DEEP, Damage, content, cut, folder_instead
from events import Recorder
from torch import nn

import fds_dist
from fds_dist.cli import main
from fds_dist.commands.inputs import check_weights
from fds_dist.commands.report.reading import read_run
from fds_dist.commands.retrain.checkpoints import read_state, write_state
from fds_dist.common.faults import UserError
from fds_dist.common.records import RecordFile
from fds_dist.outer.judge import JudgedRun
from fds_dist.storage.checkpoints import sealed, unsealed
from fds_dist.storage.run_folder import RunFolder, folder_of_launch

# --- a run's folder ---


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three outer steps, with its judging, and a retraining."""
    place = tmp_path_factory.mktemp("original")
    overrides = ["outer.average=2", "outer.judge_seeds=1", f"output_dir={place}"]
    run = fds_dist.optimize(CONFIG, overrides, progress=False)
    fds_dist.retrain(run.run_dir, ["epochs=1"], progress=False)
    return run.run_dir


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "run")


def numbers(folder: Path) -> list[Any]:
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [json.loads(line)["hypergradients"] for line in lines]


def resumed_past(folder: Path) -> list[str]:
    """What `--resume` notes; the run ends with the numbers that it had."""
    before, recorder = numbers(folder), Recorder()
    fds_dist.optimize(None, ["outer.judge_seeds=0"], resume=folder, trackers=[recorder], progress=False)
    assert numbers(folder) == before
    return [text for method, text in recorder.told if method == "note"]


@pytest.mark.parametrize(
    "change",
    [{"outer_step": 7}, {"values": [0.1, math.nan]}, {"values": [0.1]}, {"state": None}, {"meaning": {"learned": []}}],
    ids=str,
)
def test_a_checkpoint_of_wrong_content_is_named_and_the_one_before_is_used(
    folder: Path, change: dict[str, Any]
) -> None:
    newest = max(folder.glob("checkpoints/outer_*.json"))
    newest.write_text(sealed(unsealed(newest.read_bytes()) | change))
    assert any(note.startswith(f"{newest} is damaged (") for note in resumed_past(folder))


def test_without_any_whole_checkpoint_nothing_is_lost(folder: Path) -> None:
    for path in folder.glob("checkpoints/outer_*.json"):
        cut(0.5)(path)
    before = numbers(folder)
    with pytest.raises(UserError, match="no checkpoint in "):
        fds_dist.optimize(resume=folder, progress=False)
    assert numbers(folder) == before


Lines = list[bytes]
HISTORIES: dict[str, tuple[Callable[[Lines], Lines], str]] = {
    "nested": (lambda lines: [DEEP, *lines[1:]], "line 1 is not a record"),
    "nested within": (lambda lines: [lines[0][:-1] + b', "new": ' + DEEP + b"}", *lines[1:]], "line 1 is not a record"),
    "NaN as a value": (lambda lines: [lines[0].replace(b"0.05", b"NaN", 1), *lines[1:]], "not a finite number"),
    "null as a value": (lambda lines: [lines[0].replace(b"0.05", b"null", 1), *lines[1:]], "line 1 is not a record"),
    "a missing line": (lambda lines: [lines[0], lines[2]], "not all 3 that are done"),
    "turned lines": (lambda lines: lines[::-1], "not all 3 that are done"),
    "no line": (lambda lines: [], "not all 3 that are done"),
    "another name": (lambda lines: [line.replace(b'"lr"', b'"rl"') for line in lines], "has rl ×2 in outer step 0"),
    "no text": (lambda lines: [b"\xff\xfe", *lines[1:]], "line 1 is not a record"),
}


@pytest.mark.parametrize(("change", "message"), HISTORIES.values(), ids=HISTORIES.keys())
def test_a_history_that_is_not_the_runs_is_refused_by_name(
    folder: Path, change: Callable[[Lines], Lines], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "history.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in change(path.read_bytes().splitlines())))
    assert main(["optimize", "--resume", str(folder), "outer.steps=4"]) == 2
    err = capsys.readouterr().err
    assert message in err and "history.jsonl" in err and len(err.splitlines()) == 1


def test_nan_in_a_loss_is_read_as_the_writer_means_it(folder: Path) -> None:
    path = folder / "history.jsonl"
    first, *rest = map(json.loads, path.read_text().splitlines())
    texts = [json.dumps(line) for line in ({**first, "val_loss": math.nan}, *rest)]
    path.write_text("\n".join(texts) + "\n")
    (read, *_) = fds_dist.tracking.history.read_history(path)
    assert math.isnan(read.val_loss)


FILES = ["environment.json", "schedule.json", "judged.json", "judge.jsonl", "retrain/0/history.jsonl"]
DAMAGES: dict[str, Damage] = {
    "nested": content(DEEP + b"\n"),
    "a list": content(b"[]\n"),
    "a number": content(b"3\n"),
    "empty": content(b""),
    "no text": content(b"\xff\xfe\n"),
    "cut": cut(0.5),
    "a folder": folder_instead,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("name", FILES)
def test_the_file_is_refused_by_name_or_left_out(folder: Path, name: str, damage: Damage) -> None:
    path = folder / name
    damage(path)
    readers: list[Callable[[], object]] = [
        lambda: read_run(folder),
        lambda: check_weights(RunFolder(folder), lambda seed: nn.Linear(1, 1)),
        lambda: RecordFile(path, JudgedRun).read() if path.name == "judge.jsonl" else None,
        lambda: folder_of_launch(folder.parent, 0, ["nobody"]),
    ]
    for read in readers:
        try:
            read()
        except UserError as error:
            assert path.name in str(error) and len(str(error).splitlines()) == 1


STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no identity": lambda state: state.pop("identity"),
    "no records": lambda state: state.pop("records"),
    "empty records": lambda state: state.update(records=[]),
    "a record as text": lambda state: state.update(records=["x"]),
    "a step beyond the horizon": lambda state: state["records"][0].update(step=10**6),
    "a negative step": lambda state: state["records"][0].update(step=-4),
    "another epoch": lambda state: state["records"][0].update(epoch=3),
    "another seed": lambda state: state["records"][0].update(seed=3),
}


@pytest.mark.parametrize("mutate", STATES.values(), ids=STATES.keys())
def test_a_retraining_of_wrong_content_is_refused_by_name(
    folder: Path, mutate: Callable[[dict[str, Any]], object]
) -> None:
    path = folder / "retrain" / "0" / "state.safetensors"
    state = read_state(path)
    assert state is not None
    tensors, progress = state
    mutate(progress)
    write_state(path, tensors, progress)
    with pytest.raises(UserError, match=r"state\.safetensors is damaged"):
        fds_dist.retrain(folder, ["epochs=1"], progress=False)


def test_a_moment_of_another_shape_is_refused_by_name(folder: Path) -> None:
    path = folder / "retrain" / "0" / "state.safetensors"
    state = read_state(path)
    assert state is not None
    tensors, progress = state
    name = next(name for name in tensors if name.startswith("optimizer/") and tensors[name].dim())
    write_state(path, {**tensors, name: tensors[name].reshape(-1)[:1].clone()}, progress)
    with pytest.raises(UserError, match="belongs to another network"):
        fds_dist.retrain(folder, ["epochs=1"], progress=False)


def test_a_retraining_on_other_data_is_refused_by_name(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["task"]["channels"] = 2  # the default, but said
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.raises(UserError, match="holds a retraining with another task"):
        fds_dist.retrain(folder, ["epochs=1"], progress=False)
