"""What a run's folder holds, read for a report; whatever is missing or not finished is left out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fds_dist.distributed.plan import Plan, make_plan
from fds_dist.faults import Fault, UserError
from fds_dist.registry import nearest
from fds_dist.run_folder import RunFolder
from fds_dist.schedule import Schedule, bucket_start
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
    best_schedule: Schedule | None
    retrained: dict[str, list[dict[str, Any]]]
    """By seed, a record per epoch."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def best(self) -> OuterRecord | None:
        """The outer step with the lowest validation loss."""
        finite = [record for record in self.records if record.val_loss == record.val_loss]
        return min(finite, key=lambda record: record.val_loss, default=None)

    @property
    def elements(self) -> list[tuple[str, int]]:
        """(hyperparameter, bucket) of each learned number."""
        values = self.records[0].hyperparameters if self.records else {}
        return [(name, bucket) for name, row in values.items() for bucket in range(len(row))]

    @property
    def estimator(self) -> str:
        """How hypergradients were computed."""
        return str(self.config.get("estimator", "forward"))

    def plan(self) -> Plan | None:
        """Who owned which tangent in the longest outer step; None where there is none or no tangents were carried."""
        if not self.records or self.estimator != "forward":
            return None
        horizon = max(record.horizon for record in self.records)
        counts = {name: len(row) for name, row in self.records[0].hyperparameters.items()}
        starts = [bucket_start(bucket, counts[name], horizon) for name, bucket in self.elements]
        mesh = self.config.get("mesh") or {}
        others = int(mesh.get("data", 1)) * int(mesh.get("replica", 1))
        return make_plan(starts, horizon, max(1, self.records[-1].world_size // others))

    def tangent_bytes(self, plan: Plan) -> list[int] | None:
        """Bytes of tangents on each place of the `tangent` axis; None where the number of weights was not recorded."""
        weights = self.environment.get("weights")
        if not isinstance(weights, int):
            return None
        tensors = 1 + STATE_TENSORS.get(str(self.config.get("inner", {}).get("optimizer", "sgd")), 1)
        parts = int((self.config.get("mesh") or {}).get("data", 1))
        item = ITEM_BYTES.get(str(self.config.get("dtype", "float32")), 4)
        return [len(owned) * tensors * -(-weights // parts) * item for owned in plan.owned]


def read_run(path: Path) -> RunContents:
    """The run in the folder `path`.

    Raises:
        UserError: it is no run's folder (the nearest one is named), or its history is damaged.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        near = nearest(path.name, (found.parent.name for found in path.parent.glob("*/config.yaml")))
        problem = f"{path} is not the folder of a run: there is no config.yaml in it"
        raise UserError(Fault("RUN_DIR", problem, "OUTPUT_DIR/NAME", str(path.with_name(near)) if near else ""))
    text = folder.config.read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    best = path / "schedule_best.json"
    return RunContents(
        path=path,
        config_text=text,
        config=config if isinstance(config, dict) else {},
        environment=_json_object(folder.environment),
        records=read_history(folder.history) if folder.history.is_file() else [],
        best_schedule=Schedule.load(best) if best.is_file() else None,
        retrained=_retrained(path / "retrain"),
    )


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _retrained(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for path in sorted(folder.glob("*/history.jsonl"), key=lambda path: path.parent.name):
        lines = path.read_text(encoding="utf-8").splitlines()
        found[path.parent.name] = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return {seed: epochs for seed, epochs in found.items() if epochs}
