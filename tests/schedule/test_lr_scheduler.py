"""The driver beside the schedulers of `torch.optim.lr_scheduler`: the values that each optimizer step uses."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from fds_dist.common.faults import UserError
from fds_dist.schedule.schedule import Schedule

RATES, MOMENTA = (0.4, 0.3, 0.2, 0.1, 0.05, 0.01), (0.5, 0.9, 0.8)
SCHEDULE = Schedule(6, {"lr": RATES, "momentum": MOMENTA}, {}, {"name": "sgd", "nesterov": False})

Step = tuple[float, float]
ALL_STEPS: list[Step] = [(rate, MOMENTA[step // 2]) for step, rate in enumerate(RATES)]


def make_optimizer() -> Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1, momentum=0.7)


def train(optimizer: Optimizer, scheduler: Any, steps: int) -> list[Step]:
    """Learning rate and momentum of each optimizer step."""
    taken = []
    for _ in range(steps):
        (group,) = optimizer.param_groups
        taken.append((float(group["lr"]), group["momentum"]))
        group["params"][0].grad = torch.ones(2)
        optimizer.step()
        scheduler.step()
    return taken


def driver_first(optimizer: Optimizer) -> LRScheduler:
    return SequentialLR(optimizer, [SCHEDULE.attach(optimizer), CosineAnnealingLR(optimizer, 4)], milestones=[3])


def warm_up_first(optimizer: Optimizer) -> LRScheduler:
    driver = SCHEDULE.attach(optimizer)
    return SequentialLR(optimizer, [LinearLR(optimizer, 0.1, 1.0, total_iters=2), driver], milestones=[2])


def test_the_driver_is_an_lr_scheduler() -> None:
    driver = SCHEDULE.attach(make_optimizer())
    assert isinstance(driver, LRScheduler)
    assert train(driver.optimizer, driver, 6) == ALL_STEPS


def test_after_a_warm_up_the_schedule_begins_at_the_milestone() -> None:
    optimizer = make_optimizer()
    scheduler = warm_up_first(optimizer)
    warm_up = train(optimizer, scheduler, 2)
    # From the optimizer's own learning rate of 0.1; the momentum is the schedule's first already.
    assert warm_up == [(pytest.approx(0.01), 0.5), (pytest.approx(0.055), 0.5)]
    assert train(optimizer, scheduler, 6) == ALL_STEPS


@pytest.mark.parametrize("after", [CosineAnnealingLR, CosineAnnealingWarmRestarts])
def test_a_scheduler_after_the_driver_is_as_without_the_driver(after: Any) -> None:
    optimizer, alone = make_optimizer(), make_optimizer()
    scheduler = SequentialLR(optimizer, [SCHEDULE.attach(optimizer), after(optimizer, 4)], milestones=[3])
    assert train(optimizer, scheduler, 3) == ALL_STEPS[:3]
    rates = [rate for rate, _ in train(optimizer, scheduler, 5)]
    assert rates == pytest.approx([rate for rate, _ in train(alone, after(alone, 4), 5)])


@pytest.mark.parametrize("optimizer_first", [True, False])
@pytest.mark.parametrize("make", [driver_first, warm_up_first])
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_sequence_continued_from_its_state_goes_on_alike(
    make: Callable[[Optimizer], LRScheduler], stop: int, optimizer_first: bool
) -> None:
    optimizer = make_optimizer()
    scheduler = make(optimizer)
    train(optimizer, scheduler, stop)
    saved = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    rest = train(optimizer, scheduler, 4)

    optimizer = make_optimizer()
    scheduler = make(optimizer)
    for part, state in sorted(zip((optimizer, scheduler), saved, strict=True), key=lambda _: not optimizer_first):
        part.load_state_dict(state)
    assert train(optimizer, scheduler, 4) == rest


def test_a_chain_of_the_driver_alone_is_the_driver() -> None:
    optimizer = make_optimizer()
    assert train(optimizer, ChainedScheduler([SCHEDULE.attach(optimizer)]), 6) == ALL_STEPS


class Beside:
    """A training loop that calls the driver's step and then another scheduler's."""

    def __init__(self, driver: LRScheduler, other: Callable[[], object]) -> None:
        self.driver, self.other = driver, other

    def step(self) -> None:
        self.driver.step()
        self.other()


def chained(optimizer: Optimizer) -> Any:
    return ChainedScheduler([SCHEDULE.attach(optimizer), ExponentialLR(optimizer, 0.9)])


def chained_after(optimizer: Optimizer) -> Any:
    driver = SCHEDULE.attach(optimizer)
    return ChainedScheduler([CosineAnnealingWarmRestarts(optimizer, 2), driver])


def plateau(optimizer: Optimizer) -> Any:
    reduce = ReduceLROnPlateau(optimizer, patience=0)
    return Beside(SCHEDULE.attach(optimizer), lambda: reduce.step(1.0))


def two_drivers(optimizer: Optimizer) -> Any:
    return Beside(SCHEDULE.attach(optimizer), SCHEDULE.attach(optimizer, horizon=12).step)


@pytest.mark.parametrize("make", [chained, chained_after, plateau, two_drivers])
def test_what_another_scheduler_does_to_the_learning_rate_is_told_once(make: Callable[[Optimizer], Any]) -> None:
    optimizer = make_optimizer()
    scheduler = make(optimizer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(optimizer, scheduler, 6)
    messages = [str(warning.message) for warning in told]
    assert len(messages) == (2 if make is two_drivers else 1)
    assert all("of param_groups[0] is" in message and "SequentialLR" in message for message in messages)


def test_drivers_of_different_hyperparameters_share_an_optimizer_without_a_word() -> None:
    optimizer = make_optimizer()
    rates = Schedule(6, {"lr": RATES}).attach(optimizer)
    momenta = Schedule(6, {"momentum": MOMENTA}).attach(optimizer)
    assert train(optimizer, Beside(rates, momenta.step), 6) == ALL_STEPS


def test_accelerate_steps_once_per_process() -> None:
    """Two processes: twice the horizon gives each optimizer step its own values."""
    optimizer = make_optimizer()
    driver = SCHEDULE.attach(optimizer, horizon=2 * 6)
    assert train(optimizer, Beside(driver, driver.step), 6) == ALL_STEPS


def test_steps_that_a_gradient_scaler_skips_count() -> None:
    optimizer = make_optimizer()
    driver, scaler = SCHEDULE.attach(optimizer), torch.amp.GradScaler("cpu", init_scale=4.0)
    (parameter,) = optimizer.param_groups[0]["params"]
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(parameter.sum() * (float("inf") if step == 2 else 1.0)).backward()
        before = parameter.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, parameter) == (step == 2)
        driver.step()
        assert driver.values["lr"] == RATES[step + 1]


def test_a_driver_that_is_stepped_before_the_optimizer_is_told() -> None:
    optimizer = make_optimizer()
    driver = SCHEDULE.attach(optimizer)
    driver.step()
    optimizer.step()
    with pytest.warns(UserWarning, match=r"call driver\.step\(\) after optimizer\.step\(\)"):
        driver.step()


def test_a_given_step_is_exact() -> None:
    driver = SCHEDULE.attach(make_optimizer())
    driver.step(4)
    assert driver.last_epoch == 4 and driver.get_last_lr() == [RATES[4]]
    driver.step()
    assert driver.values == SCHEDULE.at(5)


# --- copies, states, other groups ---


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda driver: pickle.loads(pickle.dumps(driver))])
def test_a_copy_goes_on_with_an_optimizer_of_its_own(copied: Callable[[Any], Any]) -> None:
    optimizer = make_optimizer()
    driver = SCHEDULE.attach(optimizer)
    train(optimizer, driver, 2)
    other = copied(driver)
    assert train(optimizer, driver, 4) == ALL_STEPS[2:]
    assert train(other.optimizer, other, 4) == ALL_STEPS[2:]


def test_a_state_is_plain_values_and_loads_without_a_word() -> None:
    optimizer = make_optimizer()
    driver = SCHEDULE.attach(optimizer)
    train(optimizer, driver, 3)
    file = io.BytesIO()
    torch.save(driver.state_dict(), file)
    file.seek(0)
    fresh = SCHEDULE.attach(make_optimizer())
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.get_last_lr() == [RATES[3]]  # also without the optimizer's state
    assert train(fresh.optimizer, fresh, 3) == ALL_STEPS[3:]


def test_a_state_of_before_the_driver_was_an_lr_scheduler_loads() -> None:
    driver = SCHEDULE.attach(make_optimizer())
    driver.load_state_dict({"last_epoch": 3, "schedule": SCHEDULE.to_json()})
    assert train(driver.optimizer, driver, 3) == ALL_STEPS[3:]


def test_a_state_with_another_horizon_is_told() -> None:
    state = SCHEDULE.attach(make_optimizer()).state_dict()
    driver = SCHEDULE.attach(make_optimizer(), horizon=12)
    with pytest.warns(UserWarning, match="horizon of 6 steps replaces the 12 of attach"):
        driver.load_state_dict(state)
    assert driver.schedule == SCHEDULE


def test_the_state_of_another_scheduler_is_refused() -> None:
    driver = SCHEDULE.attach(make_optimizer())
    with pytest.raises(UserError, match="state_dict: has the keys step_size, gamma"):
        driver.load_state_dict(StepLR(make_optimizer(), 1).state_dict())


def test_a_group_that_is_added_later_gets_the_values_too() -> None:
    optimizer = make_optimizer()
    driver = SCHEDULE.attach(optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    driver.step()
    assert [(group["lr"], group["momentum"]) for group in optimizer.param_groups] == [ALL_STEPS[1]] * 2


GROUPED = Schedule(4, {"lr.a": (0.1, 0.2), "lr.b": (0.3, 0.4)}, {}, {"name": "sgd", "groups": {"a": "w", "b": "."}})


def grouped_optimizer(**options: Any) -> Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "name": name, **options} for name in ("a", "b")]
    return torch.optim.SGD(groups, lr=1.0)


def add_a_group(optimizer: Optimizer) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def load_without_names(optimizer: Optimizer) -> None:
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["name"]
    optimizer.load_state_dict(state)


@pytest.mark.parametrize("change", [add_a_group, load_without_names])
def test_groups_that_no_longer_fit_are_told_at_the_next_step(change: Callable[[Optimizer], None]) -> None:
    optimizer = grouped_optimizer()
    driver = GROUPED.attach(optimizer)
    change(optimizer)
    with pytest.raises(UserError, match=r"has no name; expected a name of a, b"):
        driver.step()
