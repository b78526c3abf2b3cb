"""Parameter groups: a hyperparameter learned once per group, from the config to a plain `torch.optim` loop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from own_tasks import Blobs
from problems import conv_bn, flat, image_task, make_problem, relative_error
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn import functional as F

import fds_dist
from fds_dist.build import Build, build
from fds_dist.commands.retrain.command import retrain
from fds_dist.common.domain import BELOW_ONE
from fds_dist.common.faults import UserError
from fds_dist.common.flat import FlatLayout, trainable_parameters
from fds_dist.config import read_draft
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.inner.estimators import ESTIMATORS, Estimator
from fds_dist.inner.estimators.greedy import greedy_estimator
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.schedule.groups import assigned, base_of, group_of, name_in
from fds_dist.schedule.schedule import Schedule
from fds_dist.schedule.space import Hyperparameter
from fds_dist.tangents import WeightGroups
from fds_dist.tangents.optimizers import SGD, Adam, InnerOptimizer

NAMES = ("conv.weight", "bn1.weight", "bn1.bias", "head.weight", "head.bias")
GROUPS = {"norm_and_bias": "bn|bias", "rest": ".*"}
CONV_BN_GROUPS = {"norm_and_bias": "^[14]|bias", "rest": ".*"}
"""For `conv_bn`, whose layers 1 and 4 are batch-norm."""


def lines(error: pytest.ExceptionInfo[UserError]) -> list[str]:
    return list(map(str, error.value.faults))


# --- patterns and names ---


def test_the_first_pattern_that_is_found_in_the_name_wins() -> None:
    found = assigned({"bn": "bn", "bias": "bias$", "rest": "."}, NAMES)
    assert found == dict(zip(NAMES, ["rest", "bn", "bn", "rest", "bias"], strict=True))


def test_parameters_without_a_group_and_groups_without_a_parameter_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        assigned({"norm": "bn", "late": "bn1", "typo": "haed"}, NAMES)
    assert lines(error) == [
        "inner.groups: no pattern matches conv.weight, head.weight, head.bias; "
        "expected a group for every parameter, such as a last one with '.*'",
        "inner.groups.late: earlier groups match all of its parameters; expected another order, or another pattern",
        "inner.groups.typo: 'haed' matches no parameter; "
        "expected a pattern found in names like conv.weight, bn1.weight, bn1.bias, head.weight, head.bias",
    ]


def test_names_of_copies() -> None:
    assert name_in("lr", "rest") == "lr.rest"
    assert (base_of("lr.rest"), group_of("lr.rest")) == ("lr", "rest")
    assert (base_of("lr"), group_of("lr")) == ("lr", "")


def test_a_copy_is_of_the_kind_of_its_hyperparameter() -> None:
    copy, whole = (Hyperparameter(name, 0.9, 0.1, scale="log") for name in ("momentum.rest", "momentum"))
    assert copy.to_scale(0.9) == whole.to_scale(0.9) < 0  # log(1 - x)
    assert copy.from_scale(copy.to_scale(0.9)) == pytest.approx(0.9, rel=1e-15)
    assert copy.scale_slope(0.9) == whole.scale_slope(0.9) == pytest.approx(-0.1, rel=1e-15)


# --- config to objects ---

BASE: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"epochs": 2, "groups": {"norm": "^1", "rest": ".*"}},
    "hyperparameters": {
        "lr": {"init": 0.1, "step": 0.05, "buckets": 2, "per_group": {"norm": {"buckets": 3, "init": 0.2, "max": 1}}},
        "momentum": {"init": 0.5, "step": 0.1, "per_group": True},
        "weight_decay": {"init": 0.01, "step": 0.01},
    },
    "outer": {"optimizer": "sign", "steps": 2},
}


def built(*overrides: str, **given: Any) -> Build:
    return build(read_draft(BASE, overrides), LaunchEnvironment(), **given)


def faults(*overrides: str, **given: Any) -> list[str]:
    with pytest.raises(UserError) as error:
        built(*overrides, **given)
    return lines(error)


def test_each_group_learns_a_copy_with_its_own_settings() -> None:
    problem = built().problem
    learned = {owner.name: owner for owner in problem.space.learned}
    assert problem.space.bucket_counts == {
        "lr.norm": 3,
        "lr.rest": 2,
        "momentum.norm": 1,
        "momentum.rest": 1,
        "weight_decay": 1,
    }
    assert problem.space.size == 8 and problem.space.fixed == {} and problem.loss_hyperparameters == ()
    assert (learned["lr.norm"].init, learned["lr.norm"].bounds) == (0.2, (0.0, 1.0))
    assert (learned["lr.rest"].init, learned["lr.rest"].bounds) == (0.1, (0.0, float("inf")))
    assert learned["momentum.rest"].bounds == (0.0, BELOW_ONE)  # the natural domain
    assert problem.optimizer_info == {"name": "sgd", "nesterov": False, "groups": BASE["inner"]["groups"]}


def test_groups_that_nothing_uses_are_checked_and_told_but_change_nothing() -> None:
    shared = [f"hyperparameters.{name}.per_group=false" for name in ("lr", "momentum")]
    found = built(*shared)
    assert found.remarks[-1] == "inner.groups has no effect: no hyperparameter has per_group"
    assert found.problem.space.bucket_counts == {"lr": 2, "momentum": 1, "weight_decay": 1}
    assert found.problem.optimizer_info == {"name": "sgd", "nesterov": False}
    assert faults(*shared, "inner.groups={norm: ^1}")[0].startswith("inner.groups: no pattern matches 0.weight")


def test_all_faults_of_groups_are_told_before_training_and_name_the_key_that_was_written() -> None:
    found = faults(
        "inner.groups={norm: ^1, typo: xyz}",
        "hyperparameters.lr.per_group={norm: {buckets: 30, scale: log, init: 0}}",
        "hyperparameters.momentum.buckets=40",
    )
    keys = [line.split(":")[0] for line in found]
    assert sorted(keys) == [
        "hyperparameters.lr.per_group.norm.buckets",
        "hyperparameters.lr.per_group.norm.init",
        "hyperparameters.momentum.buckets",  # once, though both groups have it
        "inner.groups",
        "inner.groups.typo",
    ]
    assert faults("inner.groups={a: '('}")[0].startswith("inner.groups.a: '(' cannot be compiled")
    assert len(faults("inner.groups=null")) == 2  # lr and momentum ask for them


class Smoothing(Blobs):
    """A loss with hyperparameters of its own: a temperature and the weight of an auxiliary loss."""

    seen: ClassVar[list[dict[str, Tensor]]] = []

    def loss(self, output: Tensor, target: Tensor, own: Mapping[str, Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.seen.append({name: value.detach() for name, value in own.items()})
        return F.cross_entropy(output / own["temperature"], target) + own["penalty"] * output.square().mean()

    def val_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)


def smoothing() -> Smoothing:
    return Smoothing()


def test_a_hyperparameter_of_the_loss_has_no_groups() -> None:
    overrides = ["hyperparameters.temperature=1", "hyperparameters.penalty={init: 0, step: 0.1, per_group: true}"]
    assert faults(*overrides, task=Smoothing()) == [
        "hyperparameters.penalty.per_group: penalty belongs to the loss, which has no groups; "
        "expected false; the optimizer's own can be: lr, momentum, weight_decay"
    ]


# --- one value per weight ---


def test_each_weight_reads_the_value_of_its_group() -> None:
    parameters = {name: torch.zeros(size) for name, size in zip(NAMES, [(2, 3), 2, 2, (3, 2), 3], strict=True)}
    layout = FlatLayout.of(parameters)
    whole = WeightGroups.of(GROUPS, layout, slice(None), "cpu")
    expected = [2.0] * 6 + [5.0] * 4 + [2.0] * 6 + [5.0] * 3
    h = torch.tensor([5.0, 2.0], dtype=torch.float64)

    def spread(h: Tensor) -> Tensor:
        return whole.per_weight(whole.stacked("lr", {"lr.norm_and_bias": h[0], "lr.rest": h[1]}))

    assert spread(h).tolist() == expected
    for columns in (slice(0, 7), slice(7, 14), slice(14, 19), slice(19, 19)):  # as over the data axis
        part = WeightGroups.of(GROUPS, layout, columns, "cpu")
        assert part.per_weight(h).tolist() == expected[columns]
    assert whole.per_weight(h[0]).shape == ()  # of all weights
    jacobian = torch.tensor([[value == 5.0, value == 2.0] for value in expected], dtype=torch.float64)
    forward = vmap(lambda direction: jvp(spread, (h,), (direction,))[1])(torch.eye(2, dtype=torch.float64))
    assert torch.equal(forward.T, jacobian)
    assert torch.equal(torch.autograd.functional.jacobian(spread, h), jacobian)


# --- hypergradients (against reverse mode through the unrolled run: tests/test_hypergradients.py) ---


@pytest.mark.parametrize(
    "estimator",
    [ESTIMATORS["forward"], ESTIMATORS["reverse"], greedy_estimator(0.5)],
    ids=["forward", "reverse", "greedy"],
)
@pytest.mark.parametrize("optimizer", [SGD(nesterov=True), Adam()], ids=["nesterov", "adam"])
def test_where_groups_agree_their_hypergradients_add_up_to_the_shared_one(
    estimator: Estimator, optimizer: InnerOptimizer
) -> None:
    name = "momentum" if isinstance(optimizer, SGD) else "beta1"
    shared = {"lr": [0.05, 0.02], name: [0.8], "weight_decay": [0.01, 0.02]}
    grouped = {f"{base}.{group}": row for base, row in shared.items() for group in CONV_BN_GROUPS}
    one = make_problem(image_task(), shared, optimizer=optimizer)
    two = make_problem(image_task(), grouped, optimizer=optimizer, groups=CONV_BN_GROUPS)
    whole = estimator(InnerRun(one, flat(shared), 0, 20)).hypergradients
    parts = two.space.unpack(estimator(InnerRun(two, flat(grouped), 0, 20)).hypergradients)
    sums = [sum(pair) for base in shared for pair in zip(*(parts[f"{base}.{g}"] for g in CONV_BN_GROUPS), strict=True)]
    # The chain rule, up to float64 rounding through 20 steps.
    assert relative_error(sums, whole) < 1e-12
    assert all(abs(part) > 0 for row in parts.values() for part in row)


def test_on_a_log_scale_the_slope_is_the_derivative_by_the_coordinate() -> None:
    """What the outer rule moves is log(x), or log(1 - x); central differences there, of the validation loss."""
    buckets = {"lr.norm_and_bias": [0.1], "lr.rest": [0.05], "momentum.norm_and_bias": [0.7], "momentum.rest": [0.4]}
    problem = make_problem(image_task(), buckets, groups=CONV_BN_GROUPS)
    owners = [Hyperparameter(owner.name, owner.init, owner.step, scale="log") for owner in problem.space.learned]

    def loss_at(coordinates: list[float]) -> float:
        values = [owner.from_scale(c) for owner, c in zip(owners, coordinates, strict=True)]
        return ESTIMATORS["forward"](InnerRun(problem, values, 0, 10)).val_loss

    found = ESTIMATORS["forward"](InnerRun(problem, flat(buckets), 0, 10)).hypergradients
    slopes = [g * owner.scale_slope(v) for g, owner, v in zip(found, owners, flat(buckets), strict=True)]
    at, h = [owner.to_scale(v) for owner, v in zip(owners, flat(buckets), strict=True)], 1e-5
    for index, slope in enumerate(slopes):
        plus, minus = ([c + sign * h * (i == index) for i, c in enumerate(at)] for sign in (1, -1))
        # Truncation h² and rounding 1e-16/h, each about 1e-10, of derivatives of 1e-2 and more.
        assert (loss_at(plus) - loss_at(minus)) / (2 * h) == pytest.approx(slope, rel=1e-6)


class Dead(nn.Module):
    """A parameter whose gradient is always zero, and so its second moment."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))
        self.network = conv_bn()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + 0.0 * self.bias


@pytest.mark.parametrize("estimator", ["forward", "reverse"])
@pytest.mark.parametrize("decoupled", [False, True], ids=["adam", "adamw"])
def test_no_nan_where_the_second_moment_stays_zero(estimator: str, decoupled: bool) -> None:
    values = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}
    buckets = {f"{name}.{group}": [value] for name, value in values.items() for group in ("dead", "rest")}
    groups = {"dead": "^bias", "rest": ""}
    problem = make_problem(image_task(Dead), buckets, optimizer=Adam(decoupled=decoupled), groups=groups)
    found = ESTIMATORS[estimator](InnerRun(problem, flat(buckets), 0, 12)).hypergradients
    named = problem.space.unpack(found)
    assert torch.tensor(found).isfinite().all()
    assert all(named[f"{name}.rest"] != [0.0] for name in values)
    assert named["lr.dead"] == named["beta2.dead"] == [0.0]


# --- taken away: a plain torch.optim loop ---


def plain_loop(problem: Any, schedule: Schedule, optimizer_class: Any, **options: Any) -> list[Tensor]:
    """The weights after each step of an ordinary loop over the same batches, driven by the schedule."""
    model = problem.task.build_model(0).double().train()
    optimizer = optimizer_class(fds_dist.parameter_groups(model, schedule), **options)
    driver, path = schedule.attach(optimizer), []
    parameters, batches = trainable_parameters(model), problem.batches(0)
    for _ in range(schedule.horizon):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        problem.task.loss(model(inputs), targets).backward()
        optimizer.step()
        driver.step()
        path.append(FlatLayout.of(parameters).flatten(parameters, torch.float64, "cpu"))
    return path


SGD_BUCKETS = {
    "lr.norm_and_bias": [0.2, 0.1, 0.05],
    "lr.rest": [0.05, 0.1],
    "momentum.norm_and_bias": [0.0, 0.9],
    "momentum.rest": [0.5],
    "weight_decay.norm_and_bias": [0.0],
    "weight_decay.rest": [0.01, 0.1],
}
ADAMW_BUCKETS = {
    f"{name}.{group}": [value * factor for factor in factors]
    for name, value in {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-4, "weight_decay": 0.1}.items()
    for group, factors in (("norm_and_bias", [1.0, 0.9]), ("rest", [0.8, 0.95, 0.5]))
}


@pytest.mark.parametrize(
    ("optimizer", "buckets", "theirs", "options"),
    [
        (SGD(nesterov=True), SGD_BUCKETS, torch.optim.SGD, {"lr": 1.0, "momentum": 0.1, "nesterov": True}),
        (Adam(decoupled=True), ADAMW_BUCKETS, torch.optim.AdamW, {}),
    ],
    ids=["sgd", "adamw"],
)
def test_a_plain_loop_with_the_same_groups_is_the_inner_run(
    optimizer: InnerOptimizer, buckets: Mapping[str, list[float]], theirs: Any, options: dict[str, Any]
) -> None:
    problem, horizon = make_problem(image_task(), buckets, optimizer=optimizer, groups=CONV_BN_GROUPS), 30
    values, path = flat(buckets), []

    def keep(state: InnerState, loss: Tensor) -> bool:
        path.append(state.weights)
        return True

    run_horizon(InnerRun(problem, values, 0, horizon, on_step=keep), ())
    schedule = problem.space.schedule(values, horizon, problem.optimizer_info)
    schedule = Schedule.from_json(schedule.to_json())  # as a script would read it
    for ours, plain in zip(path, plain_loop(problem, schedule, theirs, **options), strict=True):
        assert relative_error(plain, ours) < 1e-12  # roundings of 1e-16 that 30 steps amplify; found below 1e-14


GROUPED = Schedule(4, {"lr.norm_and_bias": (0.1,), "lr.rest": (0.2,), "momentum": (0.9,)}, {}, {"groups": GROUPS})


def sgd(*names: str | None) -> torch.optim.Optimizer:
    """An optimizer with a parameter group of each name."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], **({"name": name} if name else {})} for name in names]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.5)


def test_each_group_of_an_optimizer_gets_its_own_values_and_those_of_all() -> None:
    optimizer = sgd("rest", "norm_and_bias")
    GROUPED.attach(optimizer)
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [(0.2, 0.9), (0.1, 0.9)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((None,), ["param_groups[0]: has no name; expected a name of norm_and_bias, rest"]),
        (
            ("norm_and_bias", "rset", None),
            [
                "param_groups[1]: the schedule has no parameter group 'rset'; expected a name of norm_and_bias, rest",
                "param_groups[2]: has no name",
            ],
        ),
        (("rest",), ["param_groups: SGD has no parameter group norm_and_bias; expected groups with the names"]),
    ],
)
def test_groups_that_are_not_the_schedules_are_told(names: tuple[str | None, ...], expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        GROUPED.attach(sgd(*names))
    assert len(lines(error)) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines(error), expected, strict=True))


def test_parameters_that_are_sorted_otherwise_than_the_schedule_says_are_told() -> None:
    assert list(fds_dist.parameter_groups(conv_bn(), Schedule(4, {"lr": (0.1,)}))[0]) == ["params"]
    with pytest.raises(UserError, match=r"optimizer\.groups\.norm_and_bias: 'bn\|bias' matches no parameter"):
        fds_dist.parameter_groups(nn.Linear(2, 2, bias=False), GROUPED)
    with pytest.raises(UserError, match=r"optimizer\.groups: None is not valid"):
        fds_dist.parameter_groups(nn.Linear(2, 2), Schedule(4, {"lr.a": (0.1,)}))


# --- the whole way ---


def test_from_a_config_to_a_retraining_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = fds_dist.optimize({**BASE, "name": "run"}, progress=False)
    saved = json.loads((result.run_dir / "schedule.json").read_text())
    counts = {"lr.norm": 3, "lr.rest": 2, "momentum.norm": 1, "momentum.rest": 1, "weight_decay": 1}
    assert {name: len(row) for name, row in saved["hyperparameters"].items()} == counts
    assert saved["optimizer"]["groups"] == BASE["inner"]["groups"]
    for line in (result.run_dir / "history.jsonl").read_text().splitlines():
        assert {name: len(row) for name, row in json.loads(line)["hypergradients"].items()} == counts
    assert saved["hyperparameters"]["lr.norm"] != [0.2] * 3  # was learned

    done = retrain(result.run_dir, ["epochs=2"], progress=False)
    (epochs,) = (one.epochs for one in done.results)
    assert epochs[-1].hyperparameters == Schedule.load(result.run_dir).stretch(8).at(7)

    resumed = fds_dist.optimize(
        None, ["outer.steps=3", "hyperparameters.lr.per_group.norm.step=0.01"], resume=result.run_dir, progress=False
    )
    assert len(resumed.history) == 3
    with pytest.raises(UserError) as error:
        changes = ["inner.groups.norm=^0", "hyperparameters.lr.per_group.norm.buckets=4"]
        fds_dist.optimize(None, changes, resume=result.run_dir)
    assert [line.split(";")[0] for line in lines(error)] == [
        "hyperparameters.lr: cannot change when a run is resumed",
        "inner.groups: cannot change when a run is resumed",
    ]


def test_hyperparameters_of_the_loss_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = {
        "temperature": {"init": 1.0, "step": 0.1, "buckets": 2, "scale": "log"},
        "penalty": {"init": 0.1, "step": 0.05, "buckets": 4},
    }
    config = {**BASE, "task": {"name": "test_groups:smoothing"}, "name": "run"}
    config["hyperparameters"] = {"lr": {"init": 0.1, "step": 0.05, "per_group": True}, **own}
    result = fds_dist.optimize(config, progress=False)
    assert len(result.history[0].hypergradients["penalty"]) == 4
    assert all(result.history[0].hypergradients["temperature"])
    values = result.schedule.values
    assert all(value != 1.0 for value in values["temperature"])  # learned

    Smoothing.seen.clear()
    retrain(result.run_dir, ["epochs=3", "dtype=float64"], progress=False)
    stretched = result.schedule.stretch(12)
    expected = [{name: stretched.at(step)[name] for name in own} for step in range(12)]
    seen = [{name: value.item() for name, value in values.items()} for values in Smoothing.seen]
    assert seen == expected  # at each step the values of that step
    driver = stretched.attach(sgd("norm", "rest"))
    driver.step()
    assert {name: driver.values[name] for name in own} == expected[1]
