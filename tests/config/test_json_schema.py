"""The JSON Schema of configs says what reading them says, and the committed one is the package's."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from typing import Any

import pytest

from fds_dist.config import dump_config, load_config, read_draft
from fds_dist.config.json_schema import config_schema, schema_text
from fds_dist.config.sources import SHIPPED, shipped_configs
from fds_dist.config.yaml_text import parse_yaml

jsonschema: Any = pytest.importorskip("jsonschema")

LEAST = "task: {name: digits}\nhyperparameters: {lr: {buckets: 2}}\n"

TAKEN = [
    "",
    "seed: 3",
    "dtype: float64",
    "model: null",
    "model: {name: mlp, hidden: [8], freeze: '^0', anything: {of: [the, function]}}",
    "task: {name: 'mine:task', free: [1, {2: x}]}".replace("2: x", "two: x"),
    "inner: {epochs: 1e-1}",
    "inner: {epochs: [1, 2.5, 3]}",
    "inner: {steps: [1, 2, 3]}",
    "inner: {steps: null, epochs: 2}",
    "inner: {optimizer: adamw}",
    "{inner: {optimizer: 'mine:Optimizer'}, hyperparameters: {lr: {init: 0.1}}}",
    "inner: {optimizer: {name: sgd, nesterov: true}}",
    "inner: {groups: {größe: bias, rest: '.*', zwei Worte 🚀: x}}",
    "inner: {clip_gradient: null, ema: 0.9, precision: bf16}",
    "hyperparameters: {lr: {}, momentum: 0.9}",
    "hyperparameters: {lr: {init: [0.1, 0.2], buckets: 2}, mine: {init: 1}}",
    "hyperparameters: {lr: {init: {cosine: {peak: 0.1}}, min: null, max: 1}}",
    "hyperparameters: {lr: {init: {file: schedule.json}, scale: log}}",
    "{hyperparameters: {lr: {per_group: {a: {buckets: 3}}}}, inner: {groups: {a: x, b: y}}}",
    "outer: {optimizer: sign, steps: 3, target: -1.5, timeout: null}",
    "estimator: reverse",
    "tangents: {chunk_size: auto, prune: {ratio: 0.5}}",
    "tangents: {chunk_size: 4, clip_hvp: 1.0}",
    "mesh: {tangent: auto, data: 2}",
    "tracking: {wandb: {mode: offline, tags: [a, b]}, tensorboard: true}",
    "compare: {methods: [fds, tpe], ranges: {lr: [0.01, 1]}}",
    "name: größe 1 🚀",
]
REFUSED = [
    "sead: 3",
    "seed: -1",
    "seed: x",
    "dtype: float16",
    "task: digits",
    "task: {batch_size: 3}",
    "task: {name: 3}",
    "model: [mlp]",
    "inner: {epochs: 0}",
    "inner: {epochs: [1, 2, x]}",
    "inner: {steps: 0.5}",
    "inner: {steps: [1, 2, 0]}",
    "inner: {optimizer: sdg}",
    "inner: {optimizer: {name: sdg}}",
    "inner: {groups: {}}",
    "inner: {groups: {a.b: x}}",
    "inner: {groups: {a: 3}}",
    "inner: {nesterov: 1}",
    "hyperparameters: {lr: high}",
    "hyperparameters: {a/b: {init: 1}}",
    "hyperparameters: {lr: {bucket: 2}}",
    "hyperparameters: {lr: {buckets: 0}}",
    "hyperparameters: {lr: {step: 0}}",
    "hyperparameters: {lr: {init: {cosine: {peak: 0}}}}",
    "hyperparameters: {lr: {init: {cosine: {peak: 1}, linear: {peak: 1}}}}",
    "hyperparameters: {lr: {init: {}}}",
    "{hyperparameters: {lr: {per_group: {a: {size: 3}}}}, inner: {groups: {a: x}}}",
    "outer: {steps: 0}",
    "outer: {step_decay: 1}",
    "outer: 3",
    "estimator: forwards",
    "tangents: {chunk_size: some}",
    "tangents: {prune: {ratio: 1}}",
    "mesh: {data: 0}",
    "tracking: {wandb: {tags: x}}",
    "compare: {methods: []}",
    "compare: {methods: [fds, fds]}",
    "compare: {ranges: {lr: [1]}}",
    "name: a/b",
    "output_dir: ''",
]


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def with_least(change: str) -> dict[str, Any]:
    """The least config with some of its sections replaced."""
    content, faults = parse_yaml(change)
    assert faults == []
    return {**parse_yaml(LEAST)[0], **(content or {})}  # type: ignore[dict-item]


@pytest.mark.parametrize("change", TAKEN)
def test_what_reading_takes_the_schema_takes(validator: Any, change: str) -> None:
    config = with_least(change)
    assert read_draft(config).faults == []
    assert [error.message for error in validator.iter_errors(config)] == []


@pytest.mark.parametrize("change", REFUSED)
def test_what_reading_refuses_the_schema_refuses(validator: Any, change: str) -> None:
    config = with_least(change)
    assert read_draft(config).faults
    assert not validator.is_valid(config)


@pytest.mark.parametrize("missing", ["task", "hyperparameters"])
def test_what_is_required(validator: Any, missing: str) -> None:
    config = {key: value for key, value in with_least("").items() if key != missing}
    assert read_draft(config).faults and not validator.is_valid(config)


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_fit_and_name_the_schema(validator: Any, name: str) -> None:
    file = shipped_configs()[name]
    text = file.read_text(encoding="utf-8")
    assert list(validator.iter_errors(parse_yaml(text)[0])) == []
    assert list(validator.iter_errors(parse_yaml(dump_config(load_config(file)))[0])) == []  # as a run's folder has it
    header = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert header and (file.parent / header[1]).resolve() == (SHIPPED / "schema.json").resolve()


def test_the_schema_explains_each_key_in_one_line() -> None:
    definitions = config_schema()["$defs"]
    keys = {
        f"{name}.{key}": value.get("description", "of the section itself" if "$ref" in value else "")
        for name, each in definitions.items()
        for key, value in each["properties"].items()
    }
    assert len(keys) > 80
    assert all(meaning and "\n" not in meaning for meaning in keys.values())
    assert "default" not in definitions["HyperparameterConfig"]["properties"]["step"]  # it depends on other keys


@pytest.mark.skipif(not version("pydantic").startswith("2.14"), reason="the text depends on pydantic's version")
def test_the_committed_schema_is_current() -> None:
    committed = (SHIPPED / "schema.json").read_text(encoding="utf-8")
    assert json.loads(committed) == config_schema(), "run: fds-dist schema > configs/schema.json"
    assert committed == schema_text()
