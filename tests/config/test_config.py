"""The config: what it accepts, what it says about mistakes, and that a resolved config gives the same run again."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fds_dist.common.faults import UserError
from fds_dist.config import Config, HyperparameterConfig, dump_config, load_config, read_draft

OPTIMIZERS = (
    "sgd, adam, adamw, rmsprop, adagrad, nadam, lion, lamb, muon, schedule_free_sgd, schedule_free_adamw or "
    "package.module:Name"
)
MINIMAL = {"task": {"name": "digits"}, "hyperparameters": {"lr": {"init": 0.0, "step": 0.1}}}

CONTRACT = """
task: {name: digits, batch_size: 64, val_fraction: 0.1}
model: {name: lenet}
inner: {optimizer: sgd, epochs: [1, 10, 10], clip_gradient: 3.0}
hyperparameters:
  lr:           {init: 0.0, buckets: 7, step: 0.1, min: 0.0}
  momentum:     {init: 0.0, buckets: 1, step: 0.1, min: 0.0, max: 0.999}
  weight_decay: {init: 0.0, buckets: 1, step: 3.0e-4, min: 0.0}
outer: {optimizer: sign, steps: 3, step_decay: 0.5, tolerance: 0.05}
estimator: forward
tangents: {method: jvp, clip_hvp: 1.0, prune: {mode: alternate, ratio: 0.0}, chunk_size: auto, dtype: float32}
mesh: {tangent: auto, data: 1, replica: 1}
checkpoint: {every_seconds: 600, keep: 2}
tracking: {wandb: {mode: disabled, project: fds-dist}, tensorboard: false}
dtype: float32
output_dir: runs
seed: 0
"""

RICH = """
task: {name: 'my.tasks:make', when: 2024-01-01, text: '1e-3', octal: '08', switch: 'off', nested: {a: [1, 2.5, null]}}
inner:
  optimizer: adamw
  epochs: 0.5
  groups: {norm_and_bias: 'bn|bias', rest: '.*'}
hyperparameters:
  lr: {init: 1e-3, step: 1E-4, min: null, scale: log, per_group: true}
  beta1: {init: 0.9, step: .05, max: 0.99, per_group: {rest: {buckets: 3, min: null}}}
  eps: 1e-8
  smoothing: {init: 0.1, step: 1.e-2}
consistency: {mode: off}
tracking: {wandb: {mode: offline, tags: [a, 'yes', '3', '2024-01-01', '1e5', '~', 'naïve: x']}}
name: night-3.b
"""


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def changed(base: Mapping[str, Any], **sections: Any) -> dict[str, Any]:
    return {**base, **sections}


def lr(**keys: Any) -> dict[str, Any]:
    return changed(MINIMAL, hyperparameters={"lr": {"init": 0.5, "step": 0.1, **keys}})


def lines(source: Any, *overrides: str) -> list[str]:
    """The faults of a config as the user sees them."""
    return [str(fault) for fault in read_draft(source, overrides).faults]


def learned(config: Config, name: str) -> HyperparameterConfig:
    found = config.hyperparameters[name]
    assert isinstance(found, HyperparameterConfig)
    return found


def test_the_contracts_example_is_read(tmp_path):
    config = load_config(write(tmp_path, CONTRACT))
    assert config.task.name == "digits"
    assert config.task.options == {"batch_size": 64, "val_fraction": 0.1}
    assert config.model is not None and config.model.name == "lenet" and config.model.options == {}
    assert config.inner.epochs == [1, 10, 10] and config.inner.clip_gradient == 3
    assert learned(config, "weight_decay").step == 3e-4
    assert learned(config, "lr").model_fields_set >= {"min"} and "max" not in learned(config, "lr").model_fields_set
    assert config.tangents.method == "jvp" and config.checkpoint.every_seconds == 600


def test_what_is_left_out_has_the_defaults():
    config = load_config(MINIMAL)
    assert config.model is None
    assert (config.inner.optimizer, config.inner.nesterov, config.inner.clip_gradient) == ("sgd", False, None)
    assert (config.outer.optimizer, config.outer.step_decay, config.outer.tolerance) == ("adam", None, 0.05)
    assert (config.outer.nonfinite_patience, config.outer.val_batch_norm) == (3, "batch")
    assert (config.tangents.method, config.tangents.clip_hvp) == ("auto", None)
    assert (config.mesh.tangent, config.mesh.data, config.mesh.replica) == ("auto", 1, 1)
    assert (config.consistency.mode, config.consistency.every) == ("verify", 100)
    assert (config.tracking.wandb.mode, config.tracking.wandb.project) == ("disabled", "fds-dist")
    assert (config.dtype, config.device, config.output_dir, config.name, config.seed) == (
        "float32",
        "auto",
        "runs",
        None,
        0,
    )


@pytest.mark.parametrize("text", [CONTRACT, RICH])
def test_a_resolved_config_reads_back_as_itself(tmp_path, text):
    config = load_config(write(tmp_path, text))
    resolved = dump_config(config)
    again = load_config(write(tmp_path, resolved, "resolved.yaml"))
    assert again == config
    assert dump_config(again) == resolved
    # A reader without our number rules (YAML 1.1) finds the same values, so anyone's tools can read the file.
    assert load_config(yaml.safe_load(resolved)) == config


def test_a_resolved_config_lists_every_section_in_the_contracts_order():
    keys = list(yaml.safe_load(dump_config(load_config(MINIMAL))))
    contract = list(yaml.safe_load(CONTRACT))
    assert [key for key in keys if key in contract] == contract
    assert set(keys) - set(contract) == {
        "compare",
        "consistency",
        "device",
        "distributed",
        "greedy",
        "name",
        "precision",
        "random_directions",
        "reverse",
    }


def test_floats_keep_every_bit_through_the_resolved_config():
    draw = random.Random(0)
    values = [draw.uniform(-1, 1) * 10.0 ** draw.randint(-300, 300) for _ in range(200)]
    values += [5e-324, 1.7976931348623157e308, 1e16, 1e22, 0.1, -0.0]
    config = load_config(changed(MINIMAL, task={"name": "digits", "values": values}))
    assert [v.hex() for v in yaml.safe_load(dump_config(config))["task"]["values"]] == [v.hex() for v in values]


def test_a_bound_left_out_stays_different_from_null(tmp_path):
    left_out, unbounded = load_config(lr()), load_config(lr(min=None))
    assert "min" not in learned(left_out, "lr").model_fields_set
    assert "min" in learned(unbounded, "lr").model_fields_set
    assert left_out != unbounded
    for config in (left_out, unbounded):
        again = load_config(write(tmp_path, dump_config(config)))
        assert again == config
        bounds = {"min", "max"}
        assert learned(again, "lr").model_fields_set & bounds == learned(config, "lr").model_fields_set & bounds


def test_groups_override_the_keys_they_name():
    config = load_config(
        changed(
            lr(min=0.1, per_group={"bias": {"buckets": 4, "min": None}}), inner={"groups": {"bias": "b", "rest": "."}}
        )
    )
    bias, rest = learned(config, "lr").for_group("bias"), learned(config, "lr").for_group("rest")
    assert (bias.init, bias.buckets, bias.min) == (0.5, 4, None)
    assert (rest.init, rest.buckets, rest.min) == (0.5, 1, 0.1)
    assert "max" not in bias.model_fields_set and "min" in bias.model_fields_set


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1.e-3", ".1e-2", "0.001"])
def test_yaml_1_2_numbers_are_numbers(tmp_path, text):
    path = write(tmp_path, f"task: {{name: digits}}\nhyperparameters: {{eps: {text}}}\n")
    assert load_config(path).hyperparameters == {"eps": 1e-3}


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "2024-01-01", "1:30", "1e", "."])
def test_only_true_and_false_are_switches_and_dates_are_text(text):
    assert load_config(MINIMAL, [f"task.option={text}"]).task.options["option"] == text
    assert lines(MINIMAL, f"tracking.tensorboard={text}") == [
        f"tracking.tensorboard: '{text}' is text; expected true or false"
    ]


WRONG = [
    ("outer.steps=0", "outer.steps: 0 is out of range; expected a whole number of at least 1"),
    ("outer.steps=2.0", "outer.steps: 2.0 is a decimal number; expected a whole number of at least 1"),
    ("outer.steps=true", "outer.steps: true is a switch; expected a whole number of at least 1"),
    ("outer.steps=", "outer.steps: there is no value (null); expected a whole number of at least 1"),
    ("outer.step_decay=1", "outer.step_decay: 1 is out of range; expected a number above 0 and below 1"),
    ("outer.tolerance='1e-3'", "outer.tolerance: '1e-3' is text; expected a number of at least 0"),
    ("outer.tolerance=.nan", "outer.tolerance: nan is not finite; expected a number of at least 0"),
    ("outer.optimizer=lbfgs", "outer.optimizer: 'lbfgs' is not valid; expected sign, rprop, sgd or adam"),
    (
        "distributed.timeout=4",
        "distributed.timeout: 4 is out of range; expected a number of seconds of at least 5 and at most 86400, a day",
    ),
    (
        "distributed.timeout=1e5",
        "distributed.timeout: 100000.0 is out of range; "
        "expected a number of seconds of at least 5 and at most 86400, a day",
    ),
    ("consistency.every=0", "consistency.every: 0 is out of range; expected a whole number of at least 1"),
    (
        "inner.optimizer=adamm",
        f"inner.optimizer: 'adamm' is not valid; expected {OPTIMIZERS}; did you mean adam?",
    ),
    ("inner.optimizer=3", f"inner.optimizer: 3 is a whole number; expected {OPTIMIZERS}"),
    ("inner.nesterov=1", "inner.nesterov: 1 is a whole number; expected true or false"),
    ("inner.epochs=0", "inner.epochs: 0 is out of range; expected a number above 0, or a list with one per outer step"),
    ("inner.epochs=[1, 1, -1]", "inner.epochs[2]: -1 is out of range; expected a number above 0"),
    ("tangents.clip_hvp=0", "tangents.clip_hvp: 0 is out of range; expected a number above 0, or null for no clipping"),
    ("inner.groups={}", "inner.groups: {} is empty; expected at least one entry"),
    ("inner.groups.a=3", "inner.groups.a: 3 is a whole number; expected a regular expression in quotes"),
    ("inner=3", "inner: 3 is a whole number; expected a mapping"),
    ("tangents.chunk_size=0", "tangents.chunk_size: 0 is out of range; expected auto, or a whole number of at least 1"),
    ("tangents.prune.ratio=1", "tangents.prune.ratio: 1 is out of range; expected a number of at least 0 and below 1"),
    ("tangents.method=vmap", "tangents.method: 'vmap' is not valid; expected auto, jvp, double_backward or difference"),
    ("mesh.tangent=all", "mesh.tangent: 'all' is text; expected auto, or a whole number of at least 1"),
    ("checkpoint.every_seconds=0", "checkpoint.every_seconds: 0 is out of range; expected a number above 0"),
    ("name=..", "name: '..' is not valid; expected a name of letters, digits and . _ - (a number needs quotes)"),
    ("name=a/b", "name: 'a/b' is not valid; expected a name of letters, digits and . _ - (a number needs quotes)"),
    ("seed=-1", "seed: -1 is out of range; expected a whole number of at least 0"),
    (
        "task=digits",
        "task: 'digits' is text; expected a mapping with the task's name, such as {name: digits}",
    ),
    ("task.rate=.inf", "task.rate: inf is not finite; expected a finite number"),
    ("hyperparameters.eps='1'", "hyperparameters.eps: '1' is text; expected a number (fixed), or a mapping (learned), "
     "such as {buckets: 7}"),
    ("hyperparameters.lr.buckets=0", "hyperparameters.lr.buckets: 0 is out of range; expected a whole number of at "
     "least 1"),
    ("hyperparameters.lr.step=0", "hyperparameters.lr.step: 0 is out of range; expected a number above 0"),
    ("hyperparameters.lr.max=.inf", "hyperparameters.lr.max: inf is not finite; expected a number, or null for no "
     "bound"),
    ("hyperparameters.b={step: 1}", "hyperparameters.b.init: is missing; expected a number"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), WRONG, ids=[override for override, _ in WRONG])
def test_a_wrong_value_gives_one_line_that_says_what_is_right(override, message):
    assert lines(MINIMAL, override) == [message]


def test_an_integer_too_large_for_a_float_is_out_of_range():
    (line,) = lines(MINIMAL, "outer.tolerance=" + "9" * 400)
    assert "is out of range; expected a number of at least 0" in line


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("outr.steps=3", "outer"),
        ("outer.step=3", "outer.steps"),
        ("inner.epoch=3", "inner.epochs"),
        ("clip_gradient=3", "inner.clip_gradient"),
        ("inner.clip_hvp=3", "tangents.clip_hvp"),
        ("chunksize=3", "tangents.chunk_size"),
        ("ratio=0.5", "tangents.prune.ratio"),
        ("tracking.project=x", "tracking.wandb.project"),
        ("learning_rate=0.1", "hyperparameters.lr"),
        ("inner.lr=0.1", "hyperparameters.lr"),
        ("batch_size=8", "task.batch_size"),
        ("buckets=8", "hyperparameters.NAME.buckets"),
        ("hyperparameters.lr.bucket=8", "hyperparameters.lr.buckets"),
        ("hyperparameters.lr.per_group={a: {bucket: 8}}", "hyperparameters.lr.per_group.a.buckets"),
        ("tangents.prune.rate=0.5", "tangents.prune.ratio"),
        ("qqqq=1", ""),
        ("[key]=1", ""),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_valid_one(override, suggestion):
    faults = [fault for fault in read_draft(MINIMAL, [override]).faults if fault.problem == "unknown key"]
    assert [fault.suggestion for fault in faults] == [suggestion]


@pytest.mark.parametrize(
    ("source", "key", "words"),
    [
        (changed(MINIMAL, inner={"epochs": [1, 2]}), "inner.epochs", "outer.steps (3)"),
        (changed(MINIMAL, inner={"optimizer": "adam", "nesterov": True}), "inner.nesterov", "inner.optimizer: sgd"),
        (lr(min=1), "hyperparameters.lr.init", "at least 1.0 (min)"),
        (lr(max=0.25), "hyperparameters.lr.init", "at most 0.25 (max)"),
        (lr(min=2, max=1), "hyperparameters.lr.min", "at most 1.0 (max)"),
        (lr(scale="log", init=0), "hyperparameters.lr.init", "above 0"),
        (lr(per_group=True), "hyperparameters.lr.per_group", "inner.groups"),
        (
            changed(lr(per_group={"bais": {}}), inner={"groups": {"bias": "b"}}),
            "hyperparameters.lr.per_group.bais",
            "one of bias",
        ),
        (
            changed(lr(max=1, per_group={"bias": {"init": 2}}), inner={"groups": {"bias": "b"}}),
            "hyperparameters.lr.per_group.bias.init",
            "at most 1.0 (max)",
        ),
        (
            changed(lr(per_group={"bias": {"max": 0.1}}), inner={"groups": {"bias": "b"}}),
            "hyperparameters.lr.per_group.bias",
            "at most 0.1 (max)",
        ),
    ],
)
def test_values_that_contradict_each_other(source, key, words):
    (fault,) = read_draft(source).faults
    assert fault.key == key and words in fault.expected


@pytest.mark.parametrize("name", ["momentum", "beta1", "beta2"])
def test_the_log_scale_of_what_lies_below_one_allows_zero_but_not_one(name):
    def source(init: float) -> dict[str, Any]:
        return changed(MINIMAL, hyperparameters={name: {"init": init, "step": 0.1, "scale": "log"}})

    assert lines(source(0.0)) == []
    assert [fault.key for fault in read_draft(source(1.0)).faults] == [f"hyperparameters.{name}.init"]


MANY_FAULTS = """
task: {name: digits}
inner: {optimizer: sdg, epoch: 3, groups: {a: 'bn|('}}
hyperparameters:
  lr: {init: 0.0, buckets: 0, stepp: 0.1}
  momentum: {init: 1.5, step: 0.1, max: 1.0}
  weight_decay: "1e-3"
outer: {steps: 2, steps: 3, tolerance: .nan}
clip_gradient: 3
mesh:
seed: -1
"""


def test_all_faults_are_reported_at_once(tmp_path):
    path = write(tmp_path, MANY_FAULTS)
    with pytest.raises(UserError) as caught:
        load_config(path, ["tracking.wandb.mode=sometimes", "hyperparameters.weight_decay.init=0", "x"])
    assert sorted(fault.key for fault in caught.value.faults) == sorted(
        [
            "inner.optimizer",
            "inner.epoch",
            "inner.groups.a",
            "hyperparameters.lr.buckets",
            "hyperparameters.lr.stepp",
            "hyperparameters.momentum.init",
            "hyperparameters.weight_decay",
            "hyperparameters.weight_decay.init",  # the override, below what is no mapping
            "outer.steps",  # the duplicate key
            "outer.tolerance",
            "clip_gradient",
            "mesh",
            "seed",
            "tracking.wandb.mode",
            "x",
        ]
    )
    printed = str(caught.value).splitlines()
    assert len(printed) == len(caught.value.faults)
    assert not any("pydantic" in line or "http" in line or "Input should" in line for line in printed)


def test_a_draft_keeps_what_is_right_and_says_what_is_not(tmp_path):
    draft = read_draft(write(tmp_path, MANY_FAULTS), ["mesh.data=4", "inner.nesterov=true"])
    assert draft.config is not None
    assert draft.config.mesh.data == 4 and draft.config.inner.nesterov
    assert draft.config.inner.optimizer == "sgd"
    for key in ("inner", "inner.optimizer", "inner.groups", "inner.groups.a", "outer", "seed"):
        assert draft.is_broken(key), key
    assert draft.is_broken("inner.epochs"), "what a misspelt key was meant for has not the user's value"
    assert draft.is_broken("hyperparameters.lr.step"), "what a misspelt key was meant for has not the user's value"
    assert not draft.is_broken("hyperparameters.lr.init")
    for key in ("mesh", "mesh.data", "inner.nesterov", "task", "tangents", "see", "outer.step"):
        assert not draft.is_broken(key), key


@pytest.mark.parametrize("source", [{}, {"task": 3, "hyperparameters": 3}, {"task": {"nam": "x"}}])
def test_required_sections_at_fault_do_not_stop_other_checks(source):
    draft = read_draft(source, ["mesh.data=4"])
    assert draft.config is not None and draft.config.mesh.data == 4
    assert draft.is_broken("task.name") and draft.is_broken("hyperparameters")
    assert len(draft.faults) == 2


def test_a_fault_that_only_follows_from_another_is_not_reported():
    assert lines(changed(MINIMAL, inner={"epochs": [1, 2]}, outer={"steps": "2"})) == [
        "outer.steps: '2' is text; expected a whole number of at least 1"
    ]
    assert lines(changed(lr(per_group=True), inner={"group": {"a": "."}})) == [
        "inner.group: unknown key; did you mean inner.groups?"
    ]
    assert lines(changed(MINIMAL, hyperparameters={"lr": {"int": 1, "step": 1}})) == [
        "hyperparameters.lr.int: unknown key; did you mean hyperparameters.lr.init?"
    ]


def test_missing_keys_are_all_reported():
    faults = read_draft(changed(MINIMAL, hyperparameters={"first": {}, "lr": {}, "second": {"step": 1}})).faults
    assert [fault.key for fault in faults] == ["hyperparameters.first.init", "hyperparameters.second.init"]


def test_overrides_reach_any_depth_and_create_what_is_absent():
    config = load_config(
        MINIMAL,
        [
            "inner.epochs=[1,2]",
            "outer.steps=2",
            "hyperparameters.momentum={init: 0.1, step: 1e-2}",
            "hyperparameters.lr.buckets=7",
            "task.name=cifar10",
            "task.augment.flip=true",
            "model.name=lenet",
            "tracking.wandb.tags=[a, b]",
            "output_dir=a=b",
        ],
    )
    assert config.inner.epochs == [1.0, 2.0]
    assert learned(config, "momentum").step == 0.01 and learned(config, "lr").buckets == 7
    assert config.task.name == "cifar10" and config.task.options == {"augment": {"flip": True}}
    assert config.model is not None and config.model.name == "lenet"
    assert config.tracking.wandb.tags == ["a", "b"]
    assert config.output_dir == "a=b"


def test_the_last_of_two_overrides_wins():
    assert load_config(MINIMAL, ["seed=1", "seed=2"]).seed == 2
    config = load_config(MINIMAL, ["hyperparameters.lr={init: 1, step: 1}", "hyperparameters.lr.init=2"])
    assert learned(config, "lr").init == 2


def test_the_order_of_overrides_of_different_keys_does_not_matter():
    overrides = [
        "outer.steps=2", "inner.epochs=[0.5, 1]", "hyperparameters.lr.init=0.3", "hyperparameters.lr.min=null",
        "hyperparameters.momentum.init=0.5", "hyperparameters.momentum.step=0.1", "inner.groups.a='.'",
        "hyperparameters.momentum.per_group.a.buckets=2", "tangents.prune.ratio=0.5", "tracking.wandb.mode=offline",
        "task.size=3", "seed=7",
    ]  # fmt: skip
    expected = load_config(MINIMAL, overrides)
    draw = random.Random(0)
    for _ in range(50):
        draw.shuffle(overrides)
        shuffled = load_config(MINIMAL, overrides)
        assert shuffled == expected
        assert load_config(yaml.safe_load(dump_config(shuffled))) == expected


def test_the_order_of_wrong_overrides_does_not_change_what_is_reported():
    overrides = [
        override for override, _ in WRONG if override.startswith(("outer.tol", "mesh", "seed", "name=a", "ta"))
    ]
    overrides = [override for override in overrides if override not in ("task=digits", "outer.tolerance=.nan")]
    expected = sorted(lines(MINIMAL, *overrides))
    assert len(expected) == len(overrides)
    draw = random.Random(0)
    for _ in range(20):
        draw.shuffle(overrides)
        assert sorted(lines(MINIMAL, *overrides)) == expected


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("outer.steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("outer..steps=3", "expected key=value"),
        ("inner.epochs=[1", "inner.epochs: line 1, column 3: not valid YAML"),
        ("hyperparameters.eps.init=1", "hyperparameters.eps is 1e-08, which has no keys"),
        ("seed.value=1", "seed is 3, which has no keys"),
        ("hyperparameters.lr={init: 1, init: 2, step: 1}", "hyperparameters.lr.init: line 1: duplicate key"),
    ],
)
def test_an_override_that_cannot_be_applied(override, words):
    source = changed(MINIMAL, hyperparameters={"eps": 1e-8}, seed=3)
    (line,) = lines(source, override)
    assert words in line


def test_the_callers_mapping_is_left_alone_and_its_relatives_of_plain_types_are_understood(tmp_path):
    source = changed(MINIMAL, inner={"epochs": (1, 2, 3)}, output_dir=tmp_path, task={"name": "x", "pair": (1, 2)})
    config = load_config(source, ["inner.nesterov=true", "hyperparameters.lr.init=9", "task.name=y"])
    assert config.inner.epochs == [1, 2, 3] and config.output_dir == str(tmp_path)
    assert config.task.options == {"pair": [1, 2]}
    assert source["inner"] == {"epochs": (1, 2, 3)} and source["task"]["name"] == "x"
    assert MINIMAL["hyperparameters"]["lr"]["init"] == 0.0
    assert load_config(config) == config
    assert load_config(config, ["seed=5"]).seed == 5


def test_options_that_no_file_could_hold_are_refused():
    (line,) = lines(changed(MINIMAL, task={"name": "x", "data": {"train": [object()]}}))
    assert line.startswith("task.data.train: ") and "Python object of type object" in line


def test_keys_that_are_not_text_are_refused():
    assert lines(changed(MINIMAL, inner={"groups": {1: "."}, "nesterov": True})) == [
        "inner.groups.1: the key is not text; expected a name (in quotes)"
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\n b: 2", "line 2, column 3: not valid YAML"),
        ("task: {name: digits", "line 1, column 20: not valid YAML"),
        ("task:\n\tname: x", "line 2, column 1: not valid YAML"),
        ("x: !!python/object/apply:os.getcwd []", "line 1, column 4: not valid YAML"),
        ("x: !!float y", "line 1, column 4: not valid YAML"),
        ("seed: " + "9" * 5000, "line 1, column 7: not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: \x07", "line 1, column 4: the character"),
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 1000, "nested too deeply"),
        ("[1, 2]", "expected a mapping"),
        ("", "the file is empty"),
    ],
)
def test_a_file_that_is_no_config_gives_one_line(tmp_path, text, words):
    path = write(tmp_path, text)
    draft = read_draft(path)
    assert draft.config is None
    (line,) = map(str, draft.faults)
    assert str(path) in line and words in line and "\n" not in line


def test_duplicate_keys_at_any_depth_are_reported_with_their_lines(tmp_path):
    text = "task: {name: a}\ntask: {name: b}\nhyperparameters:\n  lr:\n    init: 0\n    step: 1\n    init: 2\n"
    path = write(tmp_path, text)
    assert lines(path) == [
        f"hyperparameters.lr.init: {path}, lines 5 and 7: duplicate key; expected each key once",
        f"task: {path}, lines 1 and 2: duplicate key; expected each key once",
    ]


def test_anchors_and_merges_are_no_duplicates(tmp_path):
    text = "task: {name: a}\nhyperparameters:\n  lr: &lr {init: 0, step: 1}\n  momentum: {<<: *lr, init: 0.5}\n"
    config = load_config(write(tmp_path, text))
    assert (learned(config, "momentum").init, learned(config, "momentum").step) == (0.5, 1)


def test_a_file_that_is_not_there(tmp_path):
    right = write(tmp_path, CONTRACT, "digits.yaml")
    assert lines(tmp_path / "digit.yml") == [f"{tmp_path}/digit.yml: no such file; did you mean {right}?"]
    assert "there is no folder" in lines(tmp_path / "nowhere" / "digits.yaml")[0]
    assert "Is a directory" in lines(tmp_path)[0]
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    assert "not a text file" in lines(tmp_path / "binary")[0]


def test_faulty_overrides_are_reported_beside_a_missing_file(tmp_path):
    assert len(lines(tmp_path / "digits.yaml", "x", "y=[")) == 3


def test_random_damage_never_escapes_as_an_exception(tmp_path):
    """Whatever single value is put wherever: a config that reads back, or faults; nothing else."""
    draw = random.Random(0)
    values = [None, True, 0, -1, 3, 0.5, math.nan, math.inf, "", "x", "off", [], [1], [[]], {}, {"a": 1}, {"init": "x"}]
    paths: list[tuple[str, ...]] = []

    def walk(node: Any, path: tuple[str, ...]) -> None:
        if path:
            paths.append(path)
        if isinstance(node, dict):
            for key, item in node.items():
                walk(item, (*path, key))

    base = load_config(write(tmp_path, RICH)).resolved()
    walk(base, ())
    for _ in range(200):
        source = load_config(base).resolved()
        for path in draw.sample(paths, 3):
            section: Any = source
            for key in path[:-1]:
                section = section.get(key) if isinstance(section, dict) else None
            if isinstance(section, dict):
                section[path[-1]] = draw.choice(values)
        draft = read_draft(source)
        assert draft.config is not None
        assert load_config(yaml.safe_load(dump_config(draft.config))) == draft.config
        assert bool(draft.faults) == bool(draft.broken)
        assert all("\n" not in str(fault) and fault.problem for fault in draft.faults)
        if not draft.faults:
            assert draft.config.resolved()["task"] == source["task"]


def test_the_config_is_read_without_torch():
    code = "import sys, fds_dist.config, fds_dist.common.registry; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
