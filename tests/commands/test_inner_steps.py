"""`inner.steps`: the horizon in inner steps, wherever a horizon is asked for, also in the middle of an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fds_dist
from fds_dist.commands.retrain.settings import RetrainSettings, read_settings
from fds_dist.common.faults import UserError
from fds_dist.config import dump_config, load_config

CONFIG: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},  # 4 batches per epoch
    "inner": {"steps": 6},
    "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 3}},
    "outer": {"optimizer": "sign", "steps": 2, "tolerance": 1e-9},
    "name": "run",
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def horizons(*overrides: str) -> list[int]:
    return [record.horizon for record in fds_dist.optimize(CONFIG, overrides, progress=False).history]


def test_steps_are_epochs_counted_otherwise() -> None:
    by_steps = fds_dist.optimize(CONFIG, progress=False)
    by_epochs = fds_dist.optimize(CONFIG, ["inner.steps=null", "inner.epochs=1.5", "name=epochs"], progress=False)
    assert [record.horizon for record in by_steps.history] == [6, 6]
    assert by_steps.schedule == by_epochs.schedule
    assert [record.hypergradients for record in by_steps.history] == [
        record.hypergradients for record in by_epochs.history
    ]


def test_each_outer_step_may_have_its_own_number() -> None:
    assert horizons("inner.steps=[3, 9]") == [3, 9]


def test_the_resolved_config_has_one_unit_and_reads_back() -> None:
    config = load_config(CONFIG)
    assert (config.inner.steps, config.inner.epochs) == (6, None)
    without = load_config(CONFIG, ["inner={}"])
    assert (without.inner.steps, without.inner.epochs) == (None, 1.0)
    for each in (config, without):
        Path("again.yaml").write_text(dump_config(each))
        assert load_config("again.yaml") == each


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "inner.epochs=2",
            r"inner.steps: 6 and inner.epochs=2.0 exclude each other; expected one of the two, and null",
        ),
        ("inner.steps=[1, 2, 3]", r"inner.steps: \[1, 2, 3\] has 3 entries for 2 outer steps; expected one number"),
        ("inner.steps=1.5", r"inner.steps: 1.5 is .*expected a whole number of at least 1, or a list with one per"),
        ("inner.steps=0", r"inner.steps: 0 is out of range; expected a whole number"),
        ("inner.steps=2", r"lr.buckets: 3 is more buckets than inner steps: the shortest horizon has 2"),
    ],
)
def test_what_cannot_be_is_one_line(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        fds_dist.optimize(CONFIG, [override], progress=False)
    assert len(caught.value.faults) == 1


def test_other_commands_take_the_same_horizon() -> None:
    assert fds_dist.check(CONFIG, ["inner.steps=[3, 9]"]).report.horizons == (3, 9)
    assert fds_dist.verify(CONFIG).verification.horizon == 6
    methods = "compare={methods: [fds, greedy], seeds: 1, judge_seeds: 1}"
    assert fds_dist.compare(CONFIG, [methods], progress=False).comparison.horizon == 6


def test_a_retraining_has_as_many_steps_and_goes_on_in_the_middle_of_an_epoch() -> None:
    run = fds_dist.optimize(CONFIG, ["inner.steps=[3, 6]"], progress=False).run_dir
    (result,) = fds_dist.retrain(run, progress=False).results
    assert [record.step for record in result.epochs][-1] == 6
    (longer,) = fds_dist.retrain(run, ["steps=7", "restart=true"], progress=False).results
    assert longer.final.step == 7


def test_settings_of_a_retraining_have_one_unit() -> None:
    config = load_config(CONFIG)
    told = [read_settings(overrides, config) for overrides in ([], ["epochs=3"], ["steps=9"])]
    assert [(settings.steps, settings.epochs) for settings in told] == [(6, None), (None, 3.0), (9, None)]
    assert RetrainSettings().epochs == 1.0
    with pytest.raises(UserError, match="steps: 9 and epochs=3 exclude each other; expected one of the two"):
        read_settings(["steps=9", "epochs=3"], config)
