"""The driver: a `torch.optim` optimizer under it trains as the formula that the schedule was learned with."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fds_dist.common.faults import UserError
from fds_dist.common.optimizers import BUILT_IN
from fds_dist.schedule.driver import ScheduleDriver
from fds_dist.schedule.schedule import Schedule
from fds_dist.tangents.optimizers import INNER_OPTIMIZERS

HORIZON = 40
SGD_SCHEDULE = Schedule(
    HORIZON,
    {"lr": (0.1, 0.3, 0.05), "momentum": (0.5, 0.9), "weight_decay": (0.0, 1e-3, 1e-2, 0.0)},
    optimizer={"name": "sgd", "nesterov": False},
)
ADAMW_SCHEDULE = Schedule(
    HORIZON, {"lr": (0.1, 0.01), "beta1": (0.0, 0.9, 0.5), "weight_decay": (0.1, 0.0)}, {"beta2": 0.99, "eps": 1e-6}
)


def gradient(weights: Tensor) -> Tensor:
    """Of a small non-quadratic function."""
    return torch.tanh(weights + weights.roll(1)) + 0.1 * weights.sin()


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-2, 2, 11, dtype=dtype)


def pure_run(name: str, schedule: Schedule, nesterov: bool = False, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The weights after each step of the pure update driven by `Schedule.at`."""
    optimizer = INNER_OPTIMIZERS[name](**({"nesterov": True} if nesterov else {}))
    weights = start(dtype)
    state, path = optimizer.init(weights), []
    for step in range(schedule.horizon):
        h = {name: torch.tensor(value, dtype=dtype) for name, value in schedule.at(step).items()}
        weights, state = optimizer.update(weights, state, gradient(weights), {**as_zeros(optimizer.defaults, h), **h})
        path.append(weights)
    return path


def as_zeros(names: Any, h: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(next(iter(h.values()))) for name in names}


def train(optimizer: torch.optim.Optimizer, driver: ScheduleDriver, steps: int) -> list[Tensor]:
    """The weights after each step of an ordinary training loop."""
    path = []
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = gradient(parameter.detach())
        optimizer.step()
        driver.step()
        path.append(optimizer.param_groups[0]["params"][0].detach().clone())
    return path


MOMENTUM_FROM_ZERO = Schedule(HORIZON, {"lr": (0.1,), "momentum": (0.0, 0.9, 0.0, 0.5)}, {"weight_decay": 1e-3})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "schedule", [SGD_SCHEDULE, MOMENTUM_FROM_ZERO], ids=["positive momentum", "momentum 0 at times"]
)
def test_sgd_under_the_driver_is_the_pure_update_bit_for_bit(
    schedule: Schedule, foreach: bool, nesterov: bool, dtype: torch.dtype
) -> None:
    parameter = nn.Parameter(start(dtype))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.1, nesterov=nesterov, foreach=foreach)
    schedule = replace(schedule, optimizer={"name": "sgd", "nesterov": nesterov})
    path = train(optimizer, schedule.attach(optimizer, fixed=True), HORIZON)
    for ours, theirs in zip(pure_run("sgd", schedule, nesterov, dtype), path, strict=True):
        assert torch.equal(ours, theirs)


def test_a_schedule_without_momentum_sets_exactly_zero() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(start())], lr=1.0, momentum=0.9)
    Schedule(4, {"lr": (0.1,), "momentum": (0.0, 0.0)}).attach(optimizer)
    assert optimizer.param_groups[0]["momentum"] == 0.0


def test_adamw_under_the_driver_is_the_pure_update() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(start())])
    path = train(optimizer, ADAMW_SCHEDULE.attach(optimizer, fixed=True), HORIZON)
    for ours, theirs in zip(pure_run("adamw", ADAMW_SCHEDULE), path, strict=True):
        # A step differs by a few roundings at most (tests/test_inner.py); 40 of them, on weights of size 1.
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


RATES = {"lr": (0.1, 0.01), "weight_decay": (0.1, 0.0)}
FURTHER: dict[str, dict[str, tuple[float, ...]]] = {
    "rmsprop": {"alpha": (0.9, 0.5), "eps": (1e-3,), "momentum": (0.0, 0.9, 0.0, 0.5)},
    "adagrad": {"lr_decay": (0.1, 0.0), "eps": (1e-3, 1e-4)},
    "nadam": {"beta1": (0.5, 0.9), "beta2": (0.9,), "eps": (1e-3,), "momentum_decay": (0.01, 0.1)},
}


@pytest.mark.parametrize("name", FURTHER)
def test_the_driver_sets_any_hyperparameter_by_its_name(name: str) -> None:
    parameter, facts = nn.Parameter(start()), BUILT_IN[name]
    torch.set_default_dtype(torch.float64)  # in which NAdam keeps its product
    try:
        optimizer = getattr(torch.optim, facts.torch_class)([parameter])
        schedule = Schedule(HORIZON, {**RATES, **FURTHER[name]}, optimizer={"name": name})
        assert {*schedule.values} == {*facts.defaults}
        path = train(optimizer, schedule.attach(optimizer), HORIZON)
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(pure_run(name, schedule), path, strict=True):
        # A step differs by a few roundings at most; 40 of them, on weights of size 1.
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_a_beta_under_its_own_name_is_set_there() -> None:
    """In an optimizer whose groups have `beta1`, not `betas`, or more than two."""
    optimizer = torch.optim.SGD([nn.Parameter(start())], lr=1.0)
    optimizer.param_groups[0].update(beta1=0.5, betas=(0.1, 0.2, 0.3))
    info = {"hyperparameters": ["beta1", "beta3"]}
    Schedule(4, {"beta1": (0.9,), "beta3": (0.8,)}, optimizer=info).attach(optimizer)
    group = optimizer.param_groups[0]
    assert (group["beta1"], group["betas"]) == (0.9, (0.1, 0.2, 0.8))
    with pytest.raises(UserError, match="beta3: AdamW has no betas"):
        Schedule(4, {"beta3": (0.8,)}, optimizer=info).attach(torch.optim.AdamW([nn.Parameter(start())]))


def test_values_are_set_at_once_and_then_step_by_step_in_every_group() -> None:
    parameters = [nn.Parameter(start()) for _ in range(3)]
    groups = [{"params": parameters[:2], "lr": 7.0}, {"params": parameters[2:], "weight_decay": 3.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.1)
    driver = SGD_SCHEDULE.attach(optimizer)
    for step in range(HORIZON + 5):  # past the horizon the last values stay
        expected = SGD_SCHEDULE.at(step)
        assert driver.values == expected
        for group in optimizer.param_groups:
            assert {name: group[name] for name in expected} == expected
        assert driver.get_last_lr() == [expected["lr"]] * 2
        driver.step()


def test_each_beta_is_set_without_the_other() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(start())], betas=(0.1, 0.2))
    Schedule(4, {"beta2": (0.9,)}).attach(optimizer)
    assert optimizer.param_groups[0]["betas"] == (0.1, 0.9)


def test_hyperparameters_of_the_loss_are_left_alone() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(start())], lr=1.0)
    driver = Schedule(4, {"lr": (0.1,), "smoothing": (0.2, 0.3)}).attach(optimizer)
    assert driver.values == {"lr": 0.1, "smoothing": 0.2}
    assert "smoothing" not in optimizer.param_groups[0]


def test_a_hyperparameter_of_the_loss_may_be_called_as_another_optimizers() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(start())], lr=1.0, momentum=0.5)
    schedule = Schedule(4, {"lr": (0.1,), "eps": (0.2, 0.3)}, {"momentum": 0.5}, {"name": "sgd"})
    driver = schedule.attach(optimizer)
    assert schedule.loss_hyperparameters == ("eps",)
    assert driver.values["eps"] == 0.2
    assert "eps" not in optimizer.param_groups[0]


def test_the_hyperparameters_of_an_optimizer_are_known_without_torch() -> None:
    of_formulas = {name: dict(make().defaults) for name, make in INNER_OPTIMIZERS.items()}
    assert of_formulas == {name: dict(facts.defaults) for name, facts in BUILT_IN.items()}


def test_another_horizon() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(start())], lr=1.0)
    driver = SGD_SCHEDULE.attach(optimizer, horizon=4)
    driver.step()
    driver.step()
    assert driver.values == SGD_SCHEDULE.stretch(4).at(2)


def make_optimizer(weights: Tensor) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(weights.clone())], lr=1.0, momentum=0.1, weight_decay=1e-3)


def test_a_run_continued_from_the_middle_is_the_run_that_went_on() -> None:
    optimizer = make_optimizer(start())
    driver = MOMENTUM_FROM_ZERO.attach(optimizer)
    middle = train(optimizer, driver, 23)[-1]
    saved = json.loads(json.dumps(driver.state_dict())), optimizer.state_dict()
    rest = train(optimizer, driver, 17)

    fresh = make_optimizer(middle)
    other = Schedule(7, {"lr": (9.0,)}).attach(fresh)  # its schedule and place are replaced by the saved ones
    fresh.load_state_dict(saved[1])
    other.load_state_dict(saved[0])
    assert other.schedule == MOMENTUM_FROM_ZERO
    assert other.last_epoch == 23
    for ours, theirs in zip(train(fresh, other, 17), rest, strict=True):
        assert torch.equal(ours, theirs)


def adam_as_sgd() -> None:
    Schedule(4, {"lr": (0.1,), "momentum": (0.9,)}, optimizer={"name": "sgd"}).attach(
        torch.optim.Adam([nn.Parameter(start())])
    )


def sgd_as_adam() -> None:
    ADAMW_SCHEDULE.attach(make_optimizer(start()))


def continued_with_another_schedule() -> None:
    driver = Schedule(4, {"lr": (0.1,)}).attach(make_optimizer(start()))
    adam = torch.optim.AdamW([nn.Parameter(start())], betas=(0.9, 0.99), eps=1e-6)
    driver.load_state_dict(ADAMW_SCHEDULE.attach(adam).state_dict())


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (adam_as_sgd, ["momentum: Adam has no momentum; expected an optimizer like sgd"]),
        (sgd_as_adam, ["beta1: SGD has no betas", "beta2: SGD has no betas", "eps: SGD has no eps"]),
        (
            continued_with_another_schedule,
            ["beta1: SGD has no betas", "beta2: SGD has no betas", "eps: SGD has no eps"],
        ),
    ],
)
def test_every_hyperparameter_that_the_optimizer_lacks_is_named(use: Any, expected: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        use()
    lines = [str(fault) for fault in raised.value.faults]
    assert len(lines) == len(expected)
    assert all(line.startswith(part) for line, part in zip(lines, expected, strict=True))
