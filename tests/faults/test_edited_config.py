"""A run whose config.yaml was edited before `--resume`: it goes on as one expects, or is refused by the key.

No number is ever read as another hyperparameter's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fds_dist
from fds_dist import RunResult
from fds_dist.common.faults import UserError
from fds_dist.storage.checkpoints import sealed, unsealed

CONFIG: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"epochs": 1, "groups": {"bias": "bias", "rest": "weight"}},  # 4 steps
    "hyperparameters": {
        "lr": {"init": [0.05, 0.04], "buckets": 2, "step": 0.02, "shape": "constant"},
        "momentum": {"init": 0.5, "step": 0.1, "per_group": True},
        "weight_decay": {"init": [0.01, 0.02], "buckets": 2, "step": 0.004, "shape": "constant"},
    },
    "outer": {"steps": 3, "average": 2, "judge_seeds": 1, "tolerance": 1e-9},
    "consistency": {"witness": "off"},
    "name": "run",
}
DONE = 2
"""Outer steps that are done when the config is edited."""

Edit = Callable[[dict[str, Any]], object]


def section(path: str, **changes: Any) -> Edit:
    """Sets keys below a dotted path."""

    def edit(config: dict[str, Any]) -> None:
        for key in filter(None, path.split(".")):
            config = config[key]
        config.update(changes)

    return edit


def buckets(**counts: int) -> Edit:
    """Other counts, each with one start for all."""

    def edit(config: dict[str, Any]) -> None:
        for name, count in counts.items():
            config["hyperparameters"][name].update(buckets=count, init=0.02)

    return edit


def turned(path: str) -> Edit:
    """The keys of a section in reverse order."""

    def edit(config: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            config = config[key]
        config[last] = dict(reversed(config[last].items()))

    return edit


def renamed(config: dict[str, Any]) -> None:
    groups = config["inner"]["groups"]
    config["inner"]["groups"] = {"norm": groups["bias"], "rest": groups["rest"]}


def learned(name: str, entry: Any) -> Edit:
    return section("hyperparameters", **{name: entry})


SAME: dict[str, Edit] = {
    "nothing": lambda config: None,
    "another order of hyperparameters": turned("hyperparameters"),
    "another order of sections": lambda config: [config.update({key: config.pop(key)}) for key in sorted(config)],
    "keep": section("checkpoint", keep=5),
    "every_seconds": section("checkpoint", every_seconds=5.0),
    "every": section("consistency", every=1),
    "mode": section("consistency", mode="off"),
    "timeout": section("outer", timeout=1e6),
    "patience": section("outer", nonfinite_patience=7),
    "a bound that holds": section("hyperparameters.lr", max=10.0),
}
"""To the result of the run that was never interrupted, bit for bit."""

GOES_ON: dict[str, Edit] = {
    "more outer steps": section("outer", steps=4),
    "tolerance": section("outer", tolerance=0.5),
    "average": section("outer", average=1),
    "judge_seeds": section("outer", judge_seeds=0),
    "retreat": section("outer", retreat=False),
    "step_decay": section("outer", step_decay=0.9),
    "beta2": section("outer", beta2=0.5),
    "sign for adam": section("outer", optimizer="sign"),
    "rprop for adam": section("outer", optimizer="rprop"),
    "sgd for adam": section("outer", optimizer="sgd"),
    "step": section("hyperparameters.lr", step=0.01),
    "a bound below the value": section("hyperparameters.lr", max=0.051),
    "longer inner runs": section("inner", epochs=2),
    "clip_gradient": section("inner", clip_gradient=1.0),
    "nesterov": section("inner", nesterov=True),
    "reverse for forward": section("", estimator="reverse"),
    "greedy for forward": section("", estimator="greedy"),
    "prune": section("tangents", prune={"mode": "alternate", "ratio": 0.5}),
    "seed": section("", seed=1),
    "dtype": section("", dtype="float64"),
    "val_batch_norm": section("outer", val_batch_norm="running"),
    "ema": section("inner", ema=0.9),
}
"""From the same values, with what was asked for."""

REFUSED: dict[str, tuple[Edit, str]] = {
    "2 + 2 buckets as 3 + 1": (buckets(lr=3, weight_decay=1), "hyperparameters"),
    "2 + 2 buckets as 1 + 3": (buckets(lr=1, weight_decay=3), "hyperparameters"),
    "more buckets": (buckets(lr=4), "hyperparameters"),
    "fewer buckets": (buckets(weight_decay=1), "hyperparameters"),
    "one hyperparameter is gone": (lambda config: config["hyperparameters"].pop("lr"), "hyperparameters"),
    "one is fixed": (learned("lr", 0.05), "hyperparameters"),
    "another start": (section("hyperparameters.lr", init=[0.05, 0.05]), "hyperparameters.lr.init"),
    "turned starts": (section("hyperparameters.lr", init=[0.04, 0.05]), "hyperparameters.lr.init"),
    "another scale": (section("hyperparameters.lr", scale="linear"), "hyperparameters.lr.scale"),
    "another scale of groups": (section("hyperparameters.momentum", scale="linear"), "hyperparameters.momentum.scale"),
    "another shape": (section("hyperparameters.weight_decay", shape="linear"), "hyperparameters.weight_decay.shape"),
    "no groups": (section("hyperparameters.momentum", per_group=False), "hyperparameters"),
    "groups for another one": (section("hyperparameters.lr", per_group=True), "hyperparameters"),
    "another group's name": (renamed, "hyperparameters"),
    "another group's pattern": (section("inner.groups", bias="bias$"), "inner.groups"),
    "another order of groups": (turned("inner.groups"), "inner.groups"),
    "another optimizer": (section("inner", optimizer="adamw"), "hyperparameters.momentum"),
    "an unknown key": (section("outer", stepps=3), "outer.stepps"),
    "a wrong type": (section("outer", steps="many"), "outer.steps"),
}
"""The first key that is named."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """The folder of a run that ended after DONE outer steps, and the result of one that went on."""
    place = tmp_path_factory.mktemp("original")
    short = fds_dist.optimize(CONFIG, ["outer.steps=2", f"output_dir={place}"], progress=False)
    whole = fds_dist.optimize(CONFIG, [f"output_dir={place}", "name=whole"], progress=False)
    assert [record.hyperparameters for record in whole.history[:DONE]] == [
        record.hyperparameters for record in short.history
    ]
    return short.run_dir, whole


@pytest.fixture
def folder(original: tuple[Path, RunResult], tmp_path: Path) -> Path:
    """A copy of that folder, in which one more outer step is asked for."""
    path = shutil.copytree(original[0], tmp_path / "run")
    edit_config(path, section("outer", steps=DONE + 1))
    return path


def edit_config(folder: Path, edit: Edit) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    edit(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def resumed(folder: Path) -> RunResult:
    return fds_dist.optimize(resume=folder, progress=False)


@pytest.mark.parametrize("edit", SAME.values(), ids=SAME.keys())
def test_what_does_not_touch_the_run_gives_the_same_run(
    original: tuple[Path, RunResult], folder: Path, edit: Edit
) -> None:
    edit_config(folder, edit)
    result, whole = resumed(folder), original[1]
    assert [record.hypergradients for record in result.history] == [record.hypergradients for record in whole.history]
    assert [record.hyperparameters for record in result.history] == [record.hyperparameters for record in whole.history]
    assert result.schedule == whole.schedule
    assert result.verdict == whole.verdict


@pytest.mark.parametrize("edit", GOES_ON.values(), ids=GOES_ON.keys())
def test_what_changes_what_follows_goes_on_from_the_same_values(
    original: tuple[Path, RunResult], folder: Path, edit: Edit
) -> None:
    edit_config(folder, edit)
    result, (_, whole) = resumed(folder), original
    assert result.history[:DONE] == original_history(original[0])
    expected = whole.history[DONE].hyperparameters
    if edit is GOES_ON["a bound below the value"]:
        assert max(result.history[DONE].hyperparameters["lr"]) == 0.051 < max(expected["lr"])
    else:
        assert result.history[DONE].hyperparameters == expected


def original_history(folder: Path) -> list[Any]:
    return fds_dist.tracking.history.read_history(folder / "history.jsonl")


@pytest.mark.parametrize(("edit", "key"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_numbers_do_not_fit_is_refused_by_its_key(folder: Path, edit: Edit, key: str) -> None:
    edit_config(folder, edit)
    before = contents(folder)
    with pytest.raises(UserError) as caught:
        resumed(folder)
    assert caught.value.faults[0].key == key
    assert contents(folder) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_line_names_what_the_checkpoint_holds_and_what_the_config_asks_for(folder: Path) -> None:
    edit_config(folder, buckets(lr=3, weight_decay=1))
    with pytest.raises(UserError) as caught:
        resumed(folder)
    assert "holds lr ×2, momentum.bias ×1, momentum.rest ×1, weight_decay ×2" in str(caught.value)
    assert "config lr ×3, momentum.bias ×1, momentum.rest ×1, weight_decay ×1" in str(caught.value)


def without_names(folder: Path) -> None:
    """Turns the checkpoints into those of earlier versions."""
    for path in folder.glob("checkpoints/outer_*.json"):
        state = unsealed(path.read_bytes())
        del state["meaning"]
        path.write_text(sealed(state))


@pytest.mark.parametrize("name", ["another order of hyperparameters", "2 + 2 buckets as 3 + 1", "another start"])
def test_checkpoints_without_names_are_read_with_those_of_the_history(
    original: tuple[Path, RunResult], folder: Path, name: str
) -> None:
    without_names(folder)
    if name in SAME:
        edit_config(folder, SAME[name])
        assert resumed(folder).schedule == original[1].schedule
        return
    edit, key = REFUSED[name]
    edit_config(folder, edit)
    with pytest.raises(UserError) as caught:
        resumed(folder)
    assert caught.value.faults[0].key == key


def moves(result: RunResult, name: str = "lr") -> list[float]:
    """By how much the last outer step moved each value, on the scale that it moves on."""
    steps = json.loads((result.run_dir / "history.jsonl").read_text().splitlines()[-1])["step_sizes"][name]
    return steps


def test_a_changed_step_scales_the_steps_so_far(original: tuple[Path, RunResult], folder: Path) -> None:
    edit_config(folder, GOES_ON["step"])
    assert moves(resumed(folder)) == pytest.approx([step / 2 for step in moves(original[1])], rel=1e-12)  # rounding


def test_another_rule_begins_without_the_moments_of_the_one_before(folder: Path) -> None:
    edit_config(folder, GOES_ON["sign for adam"])
    resumed(folder)
    newest = max(folder.glob("checkpoints/outer_*.json"))
    elements = unsealed(newest.read_bytes())["state"]["elements"]
    assert all(abs(sign) == 1 and (first, second, seen) == (0, 0, 0) for _, sign, first, second, seen in elements)


def test_what_has_changed_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(folder, GOES_ON["sign for adam"])
    edit_config(folder, GOES_ON["a bound below the value"])
    fds_dist.optimize(resume=folder)
    out = capsys.readouterr().out
    assert "note: outer.optimizer has changed: it begins without the moments of the earlier one" in out
    assert "note: the bounds have changed: lr[0] goes from " in out
