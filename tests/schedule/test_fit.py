"""Optimizers that differ from the one in the search: other formulas, the user's own settings, tensors."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, Adamax, AdamW, Optimizer, RAdam, RMSprop

from fds_dist.common.faults import UserError
from fds_dist.schedule.driver import ScheduleDriver
from fds_dist.schedule.schedule import Schedule

SGD_RATES = Schedule(4, {"lr": (0.4, 0.1)}, {"momentum": 0.9, "weight_decay": 0.0}, {"name": "sgd", "nesterov": False})
NESTEROV = Schedule(4, SGD_RATES.values, SGD_RATES.fixed, {"name": "sgd", "nesterov": True})
ADAMW = Schedule(
    4,
    {"lr": (1e-3, 1e-4), "weight_decay": (0.01, 0.02)},
    {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    {"name": "adamw"},
)

CENTERED = Schedule(4, {"lr": (0.4, 0.1)}, {}, {"name": "rmsprop", "centered": True})


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.linspace(-1, 1, 5))]


def attach(schedule: Schedule, optimizer: Any, **options: Any) -> tuple[ScheduleDriver, list[str]]:
    """The driver, and the warnings that `attach` gave."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        driver = schedule.attach(optimizer, **options)
    return driver, [str(warning.message) for warning in told]


# --- other formulas ---


@pytest.mark.parametrize(
    ("schedule", "optimizer", "expected"),
    [
        (ADAMW, Adam(parameters()), "learned for adamw and drives Adam, with which"),
        (ADAMW, RAdam(parameters()), "learned for adamw and drives RAdam, with which"),
        (ADAMW, Adamax(parameters()), "learned for adamw and drives Adamax, with which"),
        (ADAMW, AdamW(parameters(), amsgrad=True), "drives AdamW with amsgrad=True (learned with amsgrad=False)"),
        (NESTEROV, SGD(parameters(), momentum=0.9), "drives SGD with nesterov=False (learned with nesterov=True)"),
        (SGD_RATES, SGD(parameters(), momentum=0.9, dampening=0.5), "drives SGD with dampening=0.5"),
        (SGD_RATES, SGD(parameters(), momentum=0.9, maximize=True), "drives SGD with maximize=True"),
        (SGD_RATES, RMSprop(parameters(), momentum=0.9), "learned for sgd and drives RMSprop, with which"),
        (CENTERED, RMSprop(parameters()), "drives RMSprop with centered=False (learned with centered=True)"),
        (
            SGD_RATES,
            LBFGS(parameters()),
            "drives LBFGS, with which the same values train differently; LBFGS has no place for ",
        ),
        (
            SGD_RATES,
            AdamW(parameters(), weight_decay=0.0),
            "drives AdamW, with which the same values train differently; AdamW has no place for momentum",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Optimizer) else "",
)
def test_another_formula_than_the_schedule_was_learned_for_is_told(
    schedule: Schedule, optimizer: Optimizer, expected: str
) -> None:
    driver, (message,) = attach(schedule, optimizer)
    assert expected in message
    assert driver.get_last_lr() == [schedule.at(0)["lr"]]


class OwnAdamW(AdamW):
    """A user's subclass."""


class PagedAdamW8bit(Optimizer):
    """Named like another library's AdamW."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01})


class Wrapper:
    """Behaves like an optimizer without being one, as DeepSpeed's do."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(parameters()),
        Adam(parameters(), decoupled_weight_decay=True),
        OwnAdamW(parameters()),
        PagedAdamW8bit(parameters()),
        Wrapper(AdamW(parameters())),
    ],
    ids=["torch", "decoupled", "subclass", "another library", "wrapped"],
)
def test_the_same_formula_is_accepted_without_a_word(optimizer: Any) -> None:
    driver, told = attach(ADAMW, optimizer)
    assert told == []
    assert [group["weight_decay"] for group in driver.optimizer.param_groups] == [0.01]


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(UserError, match="optimizer: list is not an optimizer"):
        SGD_RATES.attach(parameters())


# --- what was fixed in the search ---


def test_what_was_fixed_stays_as_the_user_has_it() -> None:
    groups = [{"params": parameters(), "weight_decay": 5e-4}, {"params": parameters(), "weight_decay": 0.0}]
    optimizer = SGD(groups, lr=0.1, momentum=0.8)
    driver, told = attach(SGD_RATES, optimizer)
    assert told == []
    for _ in range(6):
        assert [(group["momentum"], group["weight_decay"]) for group in groups] == [(0.8, 5e-4), (0.8, 0.0)]
        optimizer.step()
        driver.step()


def test_a_default_that_is_not_what_was_fixed_is_told_and_stays() -> None:
    optimizer = SGD(parameters(), lr=0.1)
    _, told = attach(SGD_RATES, optimizer)
    assert told == [
        "momentum was fixed at 0.9 in the search; SGD keeps its default of 0: set it on the optimizer, "
        "or attach with fixed=True"
    ]
    assert optimizer.param_groups[0]["momentum"] == 0


def test_what_was_fixed_is_set_where_that_is_asked_for() -> None:
    optimizer = SGD(parameters(), lr=0.1, weight_decay=5e-4)
    _, told = attach(SGD_RATES, optimizer, fixed=True)
    assert told == []
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["weight_decay"] == 0.0
    with pytest.raises(UserError, match="momentum: AdamW has no momentum; expected an optimizer like sgd"):
        SGD_RATES.attach(AdamW(parameters()), fixed=True)


# --- tensors ---

ADAM = Schedule(
    4,
    {"lr": (0.1, 0.01), "beta1": (0.5, 0.75), "beta2": (0.5, 0.875)},
    {"eps": 1e-8, "weight_decay": 0.0},
    {"name": "adam"},
)


def path(schedule: Schedule, optimizer: Optimizer, step: Any = None) -> list[Tensor]:
    """The weights after each step of a training under the schedule."""
    driver = schedule.attach(optimizer)
    (parameter,) = optimizer.param_groups[0]["params"]
    weights = []
    for _ in range(schedule.horizon):
        parameter.grad = parameter.detach().sin()
        (step or optimizer.step)()
        driver.step()
        weights.append(parameter.detach().clone())
    return weights


@pytest.mark.parametrize("fused", [False, True])
def test_a_tensor_is_filled_in_place(fused: bool) -> None:
    rate = torch.tensor(1.0)
    optimizer = Adam(parameters(), lr=rate, foreach=False, fused=fused)
    taken = path(Schedule(4, {"lr": ADAM.values["lr"]}), optimizer)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == torch.tensor(0.01)
    assert float(optimizer.param_groups[0]["initial_lr"]) == 1.0
    expected = path(Schedule(4, {"lr": ADAM.values["lr"]}), Adam(parameters(), foreach=False, fused=fused))
    for weights, plain in zip(taken, expected, strict=True):
        torch.testing.assert_close(weights, plain)  # the learning rate is rounded to float32


def test_betas_that_are_tensors_are_filled_in_place() -> None:
    betas = (torch.tensor(0.9), torch.tensor(0.999))
    optimizer = Adam(parameters(), lr=torch.tensor(1.0), betas=betas, foreach=False)
    path(ADAM, optimizer)
    assert all(now is before for now, before in zip(optimizer.param_groups[0]["betas"], betas, strict=True))
    assert [float(beta) for beta in betas] == [0.75, 0.875]


@pytest.mark.parametrize("rate", [1.0, torch.tensor(1.0)], ids=["number", "tensor"])
def test_a_compiled_step_follows_the_schedule(rate: Any) -> None:
    optimizer = SGD(parameters(), lr=rate, momentum=0.9)
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    found = path(SGD_RATES, optimizer, compiled)
    expected = path(SGD_RATES, SGD(parameters(), lr=1.0, momentum=0.9))
    for weights, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(weights, plain)  # the learning rate is rounded to float32


def test_a_tensor_that_would_need_two_values_is_refused() -> None:
    schedule = Schedule(4, {"lr.a": (0.1,), "lr.b": (0.2,)}, {}, {"name": "sgd", "groups": {"a": "w", "b": "."}})
    groups = [{"params": parameters(), "name": name} for name in ("a", "b")]
    with pytest.raises(
        UserError, match=r"param_groups\[1\]: its lr\.b is the same tensor as lr\.a of param_groups\[0\]"
    ):
        schedule.attach(SGD(groups, lr=torch.tensor(0.1)))
    for group in groups:
        group["lr"] = torch.tensor(0.1)
    schedule.attach(SGD(groups, lr=0.1))
    assert [float(group["lr"]) for group in groups] == pytest.approx([0.1, 0.2])


def test_numbers_that_a_captured_step_would_keep_are_told() -> None:
    rates = Schedule(4, {"lr": ADAM.values["lr"]}, {}, {"name": "adam"})
    _, told = attach(rates, Adam(parameters(), capturable=True))
    assert len(told) == 1 and told[0].startswith("Adam(capturable=True) has plain numbers for lr, which are constants")
    _, told = attach(rates, Adam(parameters(), lr=torch.tensor(0.1), capturable=True))
    assert told == []
