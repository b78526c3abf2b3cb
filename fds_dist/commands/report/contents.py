"""What a report knows of a run, as far as the run has come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fds_dist.common.domain import UNIT_INTERVAL
from fds_dist.common.optimizers import BUILT_IN
from fds_dist.common.registry import is_positive_int
from fds_dist.common.values import Row, numbers_of, size_of
from fds_dist.inner.plan import Plan, make_plan
from fds_dist.schedule.groups import base_of, group_of
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.shapes import DEFAULT, SHAPES, Shape, shape_of
from fds_dist.storage.run_folder import CANDIDATES, RESULT
from fds_dist.tracking.curves import Curve
from fds_dist.tracking.records import OuterRecord
from fds_dist.tracking.verdict import Verdict

MOST_DRAWN = 100
"""The most elements of one hyperparameter in a figure: of more, some are taken at even distances."""

ITEM_BYTES = {"float32": 4, "float64": 8}


class Element(NamedTuple):
    """A learned number."""

    name: str
    """Its hyperparameter."""
    bucket: int
    entry: int
    size: int
    """The numbers of a bucket."""

    @property
    def place(self) -> str:
        """`3` for a bucket; `3][17` for one of its numbers, as brackets go around it."""
        return f"{self.bucket}][{self.entry}" if self.size > 1 else str(self.bucket)

    def of(self, values: Mapping[str, Row]) -> float:
        """Its number in a record; NaN where there is none."""
        row = values.get(self.name, ())
        numbers = numbers_of(row[self.bucket]) if self.bucket < len(row) else ()
        return numbers[self.entry] if self.entry < len(numbers) else math.nan


@dataclass(frozen=True)
class RunContents:
    """What the folder of one run holds."""

    path: Path
    config_text: str
    config: dict[str, Any]
    environment: dict[str, Any]
    records: list[OuterRecord]
    retrained: dict[str, list[dict[str, Any]]]
    """By seed, a record per epoch of the retraining with the result, else of that with the best schedule."""
    verdict: Verdict | None = None
    """How the candidates for the result did on fresh seeds; None where nothing was judged."""
    curves: list[Curve] = field(default_factory=list)
    """The training losses of each outer step; none in older folders."""
    schedules: dict[str, Schedule] = field(default_factory=dict)
    """`RESULT` and the candidates, as far as an update is done."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def result(self) -> Schedule | None:
        """The schedule to use; None before the first update."""
        return self.schedules.get(RESULT)

    @property
    def answer(self) -> str:
        """Which candidate the result is: average, best, last or start."""
        if self.verdict is not None:
            return self.verdict.result
        return next((name for name in CANDIDATES if self.schedules.get(name) == self.result), CANDIDATES[-1])

    @property
    def steps_per_epoch(self) -> float | None:
        """Inner steps of an epoch; None where neither the environment nor the config tells."""
        steps = self.environment.get("steps_per_epoch")
        if isinstance(steps, int) and steps > 0:
            return steps
        epochs = self.section("inner").get("epochs")
        first = epochs[0] if isinstance(epochs, list) and epochs else epochs
        if not self.records or not isinstance(first, (int, float)) or not 0 < first < math.inf:
            return None
        return self.records[0].horizon / first

    def length(self, horizon: int) -> tuple[float, str]:
        """As many inner steps on the axis of a figure: in epochs where an epoch is known. With the unit's name."""
        return (horizon / self.steps_per_epoch, "epoch") if self.steps_per_epoch else (horizon, "training step")

    @property
    def is_over(self) -> bool:
        """Whether all outer steps are done and judged, as far as the folder tells."""
        return len(self.records) == self.asked and (
            self.verdict is not None or self.section("outer").get("judge_seeds") == 0
        )

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
    def elements(self) -> list[Element]:
        """Each learned number."""
        return [element for name in self.names for element in self.elements_of(name)]

    @property
    def drawn(self) -> list[Element]:
        """The learned numbers that figures show: see `MOST_DRAWN`."""
        return [element for name in self.names for element in self.drawn_of(name)]

    def elements_of(self, name: str) -> list[Element]:
        """The numbers of one hyperparameter, bucket after bucket."""
        size = size_of(self.records[0].hyperparameters[name])
        return [Element(name, bucket, entry, size) for bucket in range(self.buckets(name)) for entry in range(size)]

    def drawn_of(self, name: str) -> list[Element]:
        """The numbers of one hyperparameter that figures show."""
        elements = self.elements_of(name)
        return elements[:: -(-len(elements) // MOST_DRAWN)]

    def buckets(self, name: str) -> int:
        """How many values the hyperparameter has over the horizon."""
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
        """Time of all outer steps."""
        return sum(record.seconds for record in self.records)

    @property
    def peak_bytes(self) -> int | None:
        """The largest peak memory of a rank; None where none was recorded."""
        peaks = [peak for record in self.records for peak in record.rank_peak_bytes or []]
        return max(peaks, default=None)

    @property
    def retrained_accuracies(self) -> list[float]:
        """Test accuracies after the last epoch of each retraining."""
        finals = [epochs[-1].get("test_accuracy") for epochs in self.retrained.values()]
        return [value for value in finals if isinstance(value, float)]

    def section(self, key: str) -> dict[str, Any]:
        """A section of the config; empty where the config does not have it."""
        return mapping(self.config.get(key))

    def ranks_along(self, axis: str) -> int:
        """The size of an axis of the mesh; 1 where the config does not tell."""
        size: Any = self.section("mesh").get(axis)
        return int(size) if is_positive_int(size) else 1

    def settings(self, name: str) -> dict[str, Any]:
        """The config's keys of a hyperparameter, or of its copy for a parameter group."""
        keys = mapping(self.section("hyperparameters").get(base_of(name)))
        return {**keys, **mapping(mapping(keys.get("per_group")).get(group_of(name)))}

    def shape(self, name: str) -> Shape:
        """The shape of a learned hyperparameter, with its buckets."""
        shape = str(self.settings(name).get("shape"))
        return shape_of(shape if shape in SHAPES else DEFAULT, self.buckets(name))

    def moved(self, name: str) -> str:
        """What the outer optimizer moves: the value, or its logarithm."""
        if self.settings(name).get("scale") != "log":
            return name
        return f"log(1 − {name})" if base_of(name) in UNIT_INTERVAL else f"log {name}"

    def plan(self) -> Plan | None:
        """Who owned which tangent in the longest outer step; None without an outer step or without tangents."""
        if not self.records or self.estimator != "forward":
            return None
        horizon = max(record.horizon for record in self.records)
        starts = [self.shape(each.name).window(each.bucket, horizon).start for each in self.elements]
        others = self.ranks_along("data") * self.ranks_along("replica")
        return make_plan(starts, horizon, max(1, self.records[-1].world_size // others))

    def tangent_bytes(self, plan: Plan) -> list[int] | None:
        """Bytes of tangents at each place of the `tangent` axis.

        None where the number of weights was not recorded, or the optimizer is not a built-in one.
        """
        weights, optimizer = self.environment.get("weights"), self.section("inner").get("optimizer", "sgd")
        facts = BUILT_IN.get(str(optimizer.get("name") if isinstance(optimizer, dict) else optimizer))
        if not isinstance(weights, int) or facts is None:
            return None
        tensors = 1 + facts.vectors + (self.section("inner").get("ema") is not None)
        parts = self.ranks_along("data")
        item = ITEM_BYTES.get(str(self.config.get("dtype", "float32")), 4)
        return [len(owned) * tensors * -(-weights // parts) * item for owned in plan.owned]


def labels(runs: Sequence[RunContents]) -> list[str]:
    """Names that tell the runs apart: their folders' names, with as many parent folders as it takes."""
    parts = [run.path.resolve().parts for run in runs]
    deepest = max(map(len, parts), default=1)
    for count in range(1, deepest + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [run.name for run in runs]


def mapping(value: object) -> dict[str, Any]:
    """`value` where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}
