"""What a run's folder holds, read for a report; whatever is missing or not finished is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fds_dist.common.domain import UNIT_INTERVAL
from fds_dist.common.faults import Fault, UserError
from fds_dist.inner.plan import Plan, make_plan
from fds_dist.schedule.buckets import bucket_start
from fds_dist.schedule.groups import base_of, group_of
from fds_dist.storage.run_folder import RunFolder
from fds_dist.tracking.history import read_history
from fds_dist.tracking.records import OuterRecord

STATE_TENSORS = {"sgd": 1, "adam": 2, "adamw": 2}
"""Vectors over the weights that an inner optimizer keeps."""

ITEM_BYTES = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class RunContents:
    """One run."""

    path: Path
    config_text: str
    config: dict[str, Any]
    environment: dict[str, Any]
    records: list[OuterRecord]
    retrained: dict[str, list[dict[str, Any]]]
    """By seed, a record per epoch: with the last schedule, or where there is no such training with the best one."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def best(self) -> OuterRecord | None:
        """The outer step with the lowest validation loss."""
        finite = [record for record in self.records if math.isfinite(record.val_loss)]
        return min(finite, key=lambda record: record.val_loss, default=None)

    @property
    def names(self) -> list[str]:
        """The learned hyperparameters."""
        return list(self.records[0].hyperparameters) if self.records else []

    @property
    def elements(self) -> list[tuple[str, int]]:
        """(hyperparameter, bucket) of each learned number."""
        return [(name, bucket) for name in self.names for bucket in range(self.buckets(name))]

    def buckets(self, name: str) -> int:
        """How many learned numbers the hyperparameter has."""
        return len(self.records[0].hyperparameters[name])

    @property
    def estimator(self) -> str:
        """How hypergradients were computed."""
        return str(self.config.get("estimator", "forward"))

    @property
    def asked(self) -> int | None:
        """The outer steps that the config asks for."""
        steps = self.section("outer").get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def seconds(self) -> float:
        """Of all outer steps."""
        return sum(record.seconds for record in self.records)

    @property
    def peak_bytes(self) -> int | None:
        """The largest memory of a rank; None where it was not recorded."""
        peaks = [peak for record in self.records for peak in record.rank_peak_bytes or []]
        return max(peaks, default=None)

    @property
    def retrained_accuracies(self) -> list[float]:
        """After the last epoch of each retraining."""
        finals = [epochs[-1].get("test_accuracy") for epochs in self.retrained.values()]
        return [value for value in finals if isinstance(value, float)]

    def section(self, key: str) -> dict[str, Any]:
        """A section of the config; empty where there is none."""
        found = self.config.get(key)
        return found if isinstance(found, dict) else {}

    def moved(self, name: str) -> str:
        """What the outer optimizer moves: the value, or its logarithm."""
        keys = self.section("hyperparameters").get(base_of(name))
        keys = keys if isinstance(keys, dict) else {}
        own = keys.get("per_group")
        own = own.get(group_of(name)) if isinstance(own, dict) else None
        scale = {**keys, **(own if isinstance(own, dict) else {})}.get("scale", "linear")
        if scale != "log":
            return name
        return f"log(1 − {name})" if base_of(name) in UNIT_INTERVAL else f"log {name}"

    def plan(self) -> Plan | None:
        """Who owned which tangent in the longest outer step; None where there is none or no tangents were carried."""
        if not self.records or self.estimator != "forward":
            return None
        horizon = max(record.horizon for record in self.records)
        starts = [bucket_start(bucket, self.buckets(name), horizon) for name, bucket in self.elements]
        mesh = self.section("mesh")
        others = int(mesh.get("data", 1)) * int(mesh.get("replica", 1))
        return make_plan(starts, horizon, max(1, self.records[-1].world_size // others))

    def tangent_bytes(self, plan: Plan) -> list[int] | None:
        """Bytes of tangents on each place of the `tangent` axis; None where the number of weights was not recorded."""
        weights = self.environment.get("weights")
        if not isinstance(weights, int):
            return None
        tensors = 1 + STATE_TENSORS.get(str(self.section("inner").get("optimizer", "sgd")), 1)
        parts = int(self.section("mesh").get("data", 1))
        item = ITEM_BYTES.get(str(self.config.get("dtype", "float32")), 4)
        return [len(owned) * tensors * -(-weights // parts) * item for owned in plan.owned]


def read_run(path: Path) -> RunContents:
    """The run in the folder `path`.

    Raises:
        UserError: it is no run's folder (the nearest one is named), or its config or history is damaged.
    """
    folder = RunFolder(path).checked()
    text, config = _config(folder.config)
    return RunContents(
        path=path,
        config_text=text,
        config=config,
        environment=_json_object(folder.environment),
        records=read_history(folder.history) if folder.history.is_file() else [],
        retrained=_retrained(path / "retrain") or _retrained(path / "retrain-best"),
    )


def labels(runs: Sequence[RunContents]) -> list[str]:
    """Names that tell the runs apart: the folders', with those above them where they are alike."""
    parts = [run.path.resolve().parts for run in runs]
    deepest = max(map(len, parts), default=1)
    for count in range(1, deepest + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [run.name for run in runs]


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(Fault("RUN_DIR", f"cannot read {path}: {reason}", "a run's config.yaml")) from None
    return text, config if isinstance(config, dict) else {}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _retrained(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for path in sorted(folder.glob("*/history.jsonl"), key=lambda path: path.parent.name):
        epochs = map(_json_line, path.read_text(encoding="utf-8").splitlines())
        found[path.parent.name] = [epoch for epoch in epochs if isinstance(epoch.get("epoch"), int)]
    return {seed: epochs for seed, epochs in found.items() if epochs}


def _json_line(line: str) -> dict[str, Any]:
    """A record; empty where the line is not one, such as a torn last line."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
