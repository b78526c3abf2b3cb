"""Defaults that depend on other keys: the steadiest, the paper's, and those of configs that were resolved before."""

from __future__ import annotations

from typing import Any

import pytest

from fds_dist.common.optimizers import BUILT_IN
from fds_dist.config import Config, HyperparameterConfig, OuterConfig, dump_config, load_config, read_draft
from fds_dist.config.yaml_text import parse_yaml


def config(hyperparameters: dict[str, Any], *overrides: str, **sections: Any) -> Config:
    return load_config({"task": {"name": "digits"}, "hyperparameters": hyperparameters, **sections}, overrides)


def entry(settings: dict[str, Any], *overrides: str, name: str = "lr", **sections: Any) -> HyperparameterConfig:
    learned = config({name: settings}, *overrides, **sections).hyperparameters[name]
    assert isinstance(learned, HyperparameterConfig)
    return learned


def outer(**settings: Any) -> tuple[str, bool, int, int]:
    section = OuterConfig.model_validate(settings)
    return section.optimizer, section.retreat, section.average, section.judge_seeds


def test_a_config_that_says_next_to_nothing_has_the_steadiest() -> None:
    learned = entry({"buckets": 7})
    assert (learned.init, learned.step, learned.scale, learned.shape) == (0.05, 0.7, "log", "linear")
    assert outer(steps=6) == ("adam", True, 4, 3)
    assert entry({}).shape == "constant"  # a single value


@pytest.mark.parametrize(("steps", "average"), [(1, 1), (2, 2), (4, 4), (9, 4)])
def test_no_more_values_are_averaged_than_there_are(steps: int, average: int) -> None:
    assert outer(steps=steps)[2] == average
    assert outer()[2] == 3  # of three outer steps


def test_the_sign_rule_brings_the_papers_set() -> None:
    learned = entry({"buckets": 7}, outer={"optimizer": "sign"})
    assert (learned.scale, learned.shape) == ("linear", "constant")
    assert outer(optimizer="sign", steps=9) == ("sign", False, 1, 0)
    assert entry({"buckets": 7}, "outer.optimizer=sign") == learned


@pytest.mark.parametrize("rule", ["rprop", "sgd", "adam"])
def test_every_other_rule_brings_the_steadiest(rule: str) -> None:
    assert outer(optimizer=rule, steps=9) == (rule, True, 4, 3)
    assert entry({"buckets": 2}, f"outer.optimizer={rule}") == entry({"buckets": 2})


@pytest.mark.parametrize("rule", ["sign", "adam"])
def test_a_value_that_is_given_always_wins(rule: str) -> None:
    given = {"init": 0.3, "step": 0.2, "buckets": 3, "scale": "log", "shape": "linear"}
    for settings in (given, {**given, "scale": "linear", "shape": "constant"}):
        learned = entry(settings, outer={"optimizer": rule})
        assert {key: getattr(learned, key) for key in settings} == settings
    assert outer(optimizer=rule, retreat=True, average=2, judge_seeds=1)[1:] == (True, 2, 1)
    assert outer(optimizer=rule, retreat=False, average=1, judge_seeds=0)[1:] == (False, 1, 0)


@pytest.mark.parametrize(
    ("name", "settings", "scale"),
    [
        ("lr", {"init": 0.0}, "linear"),  # 0 has no logarithm
        ("lr", {"init": [0.1, 0.0], "buckets": 2}, "linear"),
        ("lr", {"init": {"cosine": {"peak": 0.1}}, "buckets": 4}, "log"),
        ("momentum", {"init": 0.0}, "log"),  # log(1 - 0)
        ("weight_decay", {}, "log"),
        ("smoothing", {"init": 0.1}, "linear"),  # of the loss, whose domain nobody knows
    ],
)
def test_the_scale_is_logarithmic_where_the_domain_allows_it(name: str, settings: dict[str, Any], scale: str) -> None:
    assert entry(settings, name=name).scale == scale


@pytest.mark.parametrize(
    ("name", "settings", "step"),
    [
        ("lr", {"init": 0.1}, 0.05),  # half the start
        ("lr", {"init": [0.1, 0.2], "buckets": 2}, 0.1),  # of the largest
        ("lr", {"init": 0.0, "max": 0.5}, 0.05),  # a tenth of the range
        ("lr", {"init": 0.05, "max": 1.0}, 0.025),  # whichever is less
        ("lr", {"init": 0.0}, 0.1),  # the paper's
        ("weight_decay", {"init": 0.0}, 3e-4),  # the paper's
        ("momentum", {"init": 0.9}, 0.1),
        ("lr", {"init": 0.0, "min": None}, 0.1),
    ],
)
def test_the_step_on_a_linear_scale_comes_from_start_and_range(
    name: str, settings: dict[str, Any], step: float
) -> None:
    assert entry({**settings, "scale": "linear"}, name=name).step == step


@pytest.mark.parametrize("optimizer", BUILT_IN)
def test_each_hyperparameter_of_each_optimizer_has_a_start(optimizer: str) -> None:
    names = BUILT_IN[optimizer].defaults
    learned = config({name: {} for name in names}, inner={"optimizer": optimizer}).hyperparameters
    assert list(learned) == list(names)
    lr = learned["lr"]
    assert isinstance(lr, HyperparameterConfig)
    assert lr.init == (0.05 if optimizer == "sgd" else BUILT_IN[optimizer].defaults["lr"])


def test_a_start_that_nobody_knows_is_asked_for() -> None:
    sources = ({"hyperparameters": {"smoothing": {}}}, {"hyperparameters": {"lr": {}}, "inner": {"optimizer": "a:B"}})
    for source in sources:
        (fault,) = read_draft({"task": {"name": "digits"}, **source}).faults
        assert fault.key.endswith(".init") and fault.problem == "is missing"


def test_a_start_stays_within_the_bounds() -> None:
    assert entry({"min": 0.1}).init == 0.1
    assert entry({"max": 0.01}).init == 0.01


def test_each_parameter_group_has_the_shape_that_its_buckets_ask_for() -> None:
    groups = {"groups": {"norm": "bn", "rest": ".*"}}
    learned = entry({"per_group": {"norm": {"buckets": 3}}}, inner=groups)
    assert [learned.for_group(group).shape for group in groups["groups"]] == ["linear", "constant"]


def test_a_parameter_group_that_begins_at_0_is_on_a_linear_scale() -> None:
    groups = {"groups": {"no_decay": "bias", "rest": ".*"}}
    settings = {"init": 0.1, "per_group": {"no_decay": {"init": 0.0, "max": 0.0}}}
    learned = entry(settings, name="weight_decay", inner=groups)
    scales = [learned.for_group(group).scale for group in groups["groups"]]
    assert scales == ["linear", "log"]
    assert [learned.for_group(group).step for group in groups["groups"]] == [3e-4, 0.7]


def test_the_resolved_config_states_what_was_taken_and_reads_back_as_itself() -> None:
    for overrides in ([], ["outer.optimizer=sign"]):
        first = config({"lr": {"buckets": 7}, "momentum": {}}, *overrides)
        text = dump_config(first)
        assert all(key in text for key in ("shape:", "scale:", "step:", "average:", "judge_seeds:", "retreat:"))
        content: Any = parse_yaml(text)[0]
        assert load_config(content) == first
        # Under the other rule, too: what is written does not depend on defaults.
        other = load_config(content, ["outer.optimizer=" + ("adam" if overrides else "sign")])
        assert other.hyperparameters == first.hyperparameters


RESOLVED_BEFORE: dict[str, Any] = {
    "task": {"name": "digits"},
    "hyperparameters": {
        "lr": {"init": 0.05, "buckets": 3, "size": 1, "step": 0.5, "scale": "log", "per_group": False},
    },
    "outer": {
        **{"optimizer": "adam", "steps": 6, "step_decay": None, "momentum": 0.0, "beta1": 0.0, "beta2": 0.9},
        **{"retreat": False, "tolerance": 0.05, "nonfinite_patience": 3, "val_batch_norm": "batch"},
    },
}
"""As a version without shape, average and judge_seeds wrote it."""


@pytest.mark.parametrize("overrides", [[], ["outer.steps=9"], ["outer.optimizer=rprop"], ["outer.judge_seeds=2"]])
def test_a_config_that_was_resolved_before_means_what_its_run_had(overrides: list[str]) -> None:
    earlier = load_config(RESOLVED_BEFORE, overrides)
    lr = earlier.hyperparameters["lr"]
    assert isinstance(lr, HyperparameterConfig) and lr.shape == "constant"
    assert earlier.outer.average == 1
    assert earlier.outer.judge_seeds == (2 if "judge" in "".join(overrides) else 0)
