"""`init` as a list, a curve or an earlier schedule: the values, where a search begins, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import fds_dist
from fds_dist.build.starts import start_of
from fds_dist.common.domain import UNBOUNDED
from fds_dist.common.faults import UserError
from fds_dist.config import HyperparameterConfig, dump_config, load_config
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.shapes import Constant, Linear
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace
from fds_dist.schedule.starts import curve_means, curve_values, schedule_values

COSINE = {"cosine": {"peak": 0.1, "warmup": 0.25}}
QUARTER = 2 / math.pi
"""(sin πb − sin πa) / π(b − a) is ±2/π for the two halves of a cosine."""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(lr: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "task": {"name": "own_tasks:blobs"},
        "inner": {"epochs": 1},  # 4 steps
        "hyperparameters": {"lr": {"step": 0.01, "buckets": 4, **lr}, "momentum": 0.9},
        "outer": {"optimizer": "sign", "steps": 2, "tolerance": 1e-9},
        "consistency": {"witness": "off"},
        "name": "run",
        **changes,
    }


def first_line(run: str = "runs/run") -> dict[str, Any]:
    line: dict[str, Any] = json.loads(Path(run, "history.jsonl").read_text().splitlines()[0])["hyperparameters"]
    return line


@pytest.mark.parametrize(
    ("arguments", "means"),
    [
        (("linear", 1.0, 0.0, 0.0, 4), [7 / 8, 5 / 8, 3 / 8, 1 / 8]),
        (("linear", 1.0, 0.5, 0.0, 2), [7 / 8, 5 / 8]),
        (("linear", 1.0, 0.0, 0.5, 4), [1 / 4, 3 / 4, 3 / 4, 1 / 4]),
        (("linear", 1.0, 0.0, 0.5, 1), [1 / 2]),
        (("cosine", 1.0, 0.0, 0.0, 2), [(1 + QUARTER) / 2, (1 - QUARTER) / 2]),
        (("cosine", 3.0, 1.0, 0.0, 2), [2 + QUARTER, 2 - QUARTER]),
        # A warm-up of a third, within the first of two buckets: (1/3 · 1/2 + the decay's first quarter · 1/6) / (1/2).
        (
            ("cosine", 1.0, 0.0, 1 / 3, 2),
            [1 / 3 + (1 + math.sin(math.pi / 4) / (math.pi / 4)) / 6, 0.5 - math.sin(math.pi / 4) / (1.5 * math.pi)],
        ),
        (("cosine", 0.3, 0.3, 0.0, 7), [0.3] * 7),
    ],
)
def test_a_bucket_is_the_mean_of_the_curve_over_its_stretch(arguments: Any, means: list[float]) -> None:
    # A few roundings of numbers of about 1.
    assert curve_means(*arguments) == pytest.approx(means, rel=0, abs=1e-15)


def test_the_mean_never_leaves_the_curve() -> None:
    for buckets in range(1, 200):
        assert all(0.1 <= mean <= 0.3 for mean in curve_means("cosine", 0.3, 0.1, 0.0, buckets))
        assert all(0 < mean <= 0.3 for mean in curve_means("linear", 0.3, 0.0, 0.05, buckets))


def test_an_earlier_schedule_is_averaged_over_the_steps_of_each_bucket() -> None:
    earlier = Schedule(10, {"lr": (0.1, 0.2, 0.7)}, {"momentum": 0.9})  # 4, 3 and 3 steps
    assert schedule_values(earlier, "lr", Constant(3)) == [0.1, 0.2, 0.7]
    assert schedule_values(earlier, "lr", Constant(1)) == pytest.approx([(0.4 + 0.6 + 2.1) / 10], rel=1e-15)
    assert schedule_values(earlier, "lr", Constant(2)) == pytest.approx([(0.4 + 0.2) / 5, (0.4 + 2.1) / 5], rel=1e-15)
    assert schedule_values(earlier, "lr", Constant(30)) == [0.1] * 10 + [0.2] * 10 + [0.7] * 10
    assert schedule_values(earlier, "momentum", Constant(2)) == [0.9, 0.9]


def test_a_space_begins_with_a_number_per_bucket_or_per_entry() -> None:
    rates, weights = Hyperparameter("lr", (0.1, 0.2), 1.0, buckets=2), Hyperparameter("w", (1.0, 2.0), 1.0, 2, size=2)
    assert HyperparameterSpace((rates, weights)).initial() == [0.1, 0.2, 1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("init", "values"),
    [
        ([0.04, 0.03, 0.02, 0.01], [0.04, 0.03, 0.02, 0.01]),
        (COSINE, curve_means("cosine", 0.1, 0.0, 0.25, 4)),
        ({"linear": {"peak": 0.1, "floor": 0.02}}, [0.09, 0.07, 0.05, 0.03]),
    ],
)
def test_a_search_begins_at_exactly_these_values(init: Any, values: list[float]) -> None:
    fds_dist.optimize(config({"init": init, "scale": "log"}), progress=False)
    assert first_line()["lr"] == pytest.approx(values, rel=1e-15 if "linear" in init else 0, abs=0)
    written = load_config("runs/run/config.yaml").hyperparameters["lr"]
    assert written == load_config(config({"init": init, "scale": "log"})).hyperparameters["lr"]


def test_a_search_begins_where_an_earlier_one_ended_and_resumes_without_the_file() -> None:
    earlier = Schedule(100, {"lr": (0.04, 0.02), "lr.head": (0.06, 0.03)}, {"momentum": 0.9})
    earlier.save("schedule.json")
    groups = {"epochs": 1, "groups": {"head": "bias", "body": ".*"}}
    learned = {"init": {"file": "schedule.json"}, "per_group": True}
    fds_dist.optimize(config(learned, inner=groups, consistency={"witness": "on"}), progress=False)
    assert first_line() == {"lr.head": [0.06, 0.06, 0.03, 0.03], "lr.body": [0.04, 0.04, 0.02, 0.02]}
    Path("schedule.json").unlink()
    result = fds_dist.optimize(None, ["outer.steps=3"], resume="runs/run", progress=False)
    assert len(result.history) == 3
    assert "file: schedule.json" in dump_config(load_config("runs/run/config.yaml"))


SAVED = Schedule(10, {"lr": (0.1, 0.0), "mix": ((0.1, 0.2),)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": [0.1, 0.2]}, "init: a list of 2 is not possible; expected a number, or a list of 4 (buckets)"),
        ({"init": [0.1, 0.2, 0.3, -1]}, "init: -1 is out of range; expected a number of at least 0"),
        ({"init": COSINE, "max": 0.05}, "is out of range; expected a number of at most 0.05 (max)"),
        ({"init": {"cosine": {}}}, "init.cosine.peak: is missing"),
        ({"init": {"cosine": {"peek": 1}}}, "init.cosine.peek: unknown key; did you mean hyperparameters.lr.init.co"),
        ({"init": {"cosine": {"peak": 0}}}, "init.cosine.peak: 0 is out of range; expected a number above 0"),
        ({"init": {"linear": {"peak": 0.1, "floor": 0.2}}}, "init.linear.floor: 0.2 is above peak; expected a number"),
        ({"init": {"linear": {"peak": 0.1, "warmup": 1}}}, "init.linear.warmup: 1 is out of range; expected"),
        ({"init": {}}, "init: is missing; expected a number"),
        ({"init": "cosine"}, "init: 'cosine' is text; expected a number, a list of numbers, or a mapping with one of"),
        ({"init": {**COSINE, "file": "a"}}, "init: cosine and file exclude each other; expected one of cosine, line"),
        ({"init": {"file": "other.json"}}, "init.file: other.json: cannot be read"),
        ({"init": {"file": "saved.json"}, "scale": "log"}, "init: 0 has no logarithm; expected a number above 0, or"),
        ({"init": COSINE, "size": 2}, "init: cosine gives one number per bucket, not 2 (size); expected a number, or"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict[str, Any], message: str) -> None:
    SAVED.save("saved.json")
    with pytest.raises(UserError) as caught:
        fds_dist.optimize(config(changes), progress=False)
    assert message in str(caught.value) and str(caught.value).startswith("hyperparameters.lr.init")
    # A line for each fault: the optimizer's lr takes no `size` either.
    assert len(str(caught.value).splitlines()) == len(caught.value.faults) == 1 + ("size" in changes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("momentum", "KEY.file: saved.json has no momentum; expected a schedule with it, not of lr, mix"),
        (
            "mix",
            "KEY.file: saved.json: mix has 2 numbers per bucket; expected a schedule with one, or an init of numbe",
        ),
    ],
)
def test_a_file_without_the_hyperparameter_or_with_a_vector_is_refused(name: str, message: str) -> None:
    SAVED.save("saved.json")
    entry = HyperparameterConfig.model_validate({"init": {"file": "saved.json"}, "step": 0.1})
    with pytest.raises(UserError) as caught:
        start_of(name, entry, "KEY", UNBOUNDED, {})
    assert str(caught.value).startswith(message)


def test_a_knot_takes_the_value_of_the_curve_where_it_stands() -> None:
    # A few roundings of numbers of about 1.
    assert curve_values("linear", 1.0, 0.0, 0.0, Linear(5)) == pytest.approx([1, 3 / 4, 1 / 2, 1 / 4, 0], abs=1e-15)
    assert curve_values("cosine", 3.0, 1.0, 0.0, Linear(3)) == pytest.approx([3, 2, 1], abs=1e-15)
    assert curve_values("linear", 1.0, 0.0, 0.5, Linear(5)) == pytest.approx([0, 1 / 2, 1, 1 / 2, 0], abs=1e-15)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_an_earlier_schedule_starts_one_of_another_shape(count: int) -> None:
    row = tuple(0.1 * (bucket + 1) ** 2 for bucket in range(count))
    lines, steps = Schedule(11, {"lr": row}, shapes={"lr": "linear"}), Schedule(11, {"lr": row})
    assert schedule_values(lines, "lr", Linear(count)) == [*row]  # the same bits
    assert schedule_values(steps, "lr", Linear(count)) == [*row]
    rates = [lines.at(step)["lr"] for step in range(11)]
    # Sums of at most eleven numbers of about 1, in another order.
    assert schedule_values(lines, "lr", Constant(1)) == pytest.approx([sum(rates) / 11], rel=1e-14)
    assert schedule_values(lines, "lr", Constant(11)) == pytest.approx(rates, rel=1e-14)
    finer = schedule_values(lines, "lr", Linear(4 * (count - 1) + 1))
    assert finer[::4] == [*row]  # knots at quarters of the lines: the line itself, whatever the horizon
    assert finer == pytest.approx([Schedule(4 * count - 3, {"lr": row}, shapes={"lr": "linear"}).at(i)["lr"]
                                   for i in range(4 * count - 3)], rel=1e-15)  # fmt: skip


@pytest.mark.parametrize(
    ("init", "scale", "values"),
    [
        (COSINE, "linear", [0.0, 0.1 * (1 + math.cos(math.pi / 9)) / 2, 0.1 * (1 + math.cos(5 * math.pi / 9)) / 2, 0]),
        (COSINE, "log", [1e-3, 0.1 * (1 + math.cos(math.pi / 9)) / 2, 0.1 * (1 + math.cos(5 * math.pi / 9)) / 2, 1e-3]),
        ({"file": "lines.json"}, "log", [0.01, 0.02, 0.03, 0.04]),
        ({"file": "one.json"}, "log", [0.05] * 4),
    ],
)
def test_a_search_over_knots_begins_there(init: Any, scale: str, values: list[float]) -> None:
    Schedule(100, {"lr": (0.01, 0.04)}, shapes={"lr": "linear"}).save("lines.json")
    Schedule(100, {"lr": (0.05,)}).save("one.json")
    learned = {"init": init, "scale": scale, "shape": "linear"}
    fds_dist.optimize(config(learned, outer={"steps": 1}), progress=False)
    assert first_line()["lr"] == pytest.approx(values, rel=1e-14, abs=1e-17)
    assert fds_dist.load_schedule("runs/run").shapes == {"lr": "linear"}
