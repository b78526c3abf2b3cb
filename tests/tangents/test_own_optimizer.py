"""Optimizers of a user's own: found by their path, tried before training, and stepped in plain PyTorch too."""

from __future__ import annotations

import copy

import pytest
import torch
from own_optimizers import HeavyBall
from problems import mlp
from slopes import non_quadratic_problem
from torch import nn

from fds_dist.common.faults import UserError
from fds_dist.common.flat import FlatLayout, trainable_parameters
from fds_dist.schedule.driver import parameter_groups
from fds_dist.schedule.schedule import Schedule
from fds_dist.tangents.optimizers import INNER_OPTIMIZERS, make_inner_optimizer, needs_layout, optimizer_of
from fds_dist.tangents.optimizers.checks import check_optimizer
from fds_dist.tangents.optimizers.plain import PureOptimizer, make_optimizer, torch_optimizer

MODULE = "own_optimizers"
LAYOUT = FlatLayout(("a", "b"), (torch.Size((2, 3)), torch.Size((4,))))


def problem_of(name: str, **where: bool) -> str:
    """The message of the refusal."""
    with pytest.raises(UserError) as refused:
        check_optimizer(make_inner_optimizer(f"{MODULE}:{name}", {}), LAYOUT, key="inner.optimizer", **where)
    (line,) = str(refused.value).splitlines()
    return line


@pytest.mark.parametrize("name", ["HeavyBall", "Normalized"])
def test_a_good_one_is_accepted_and_found_again_by_what_a_schedule_holds(name: str) -> None:
    optimizer = make_inner_optimizer(f"{MODULE}:{name}", {"sign": 2.0})
    check_optimizer(optimizer, LAYOUT, split=True, grouped=True)
    assert needs_layout(optimizer) == (name == "Normalized")
    info = {"name": optimizer.name, **optimizer.switches}
    assert info == {"name": f"{MODULE}:{name}", "options": {"sign": 2.0}, "hyperparameters": ["lr", "drag"]}
    again = optimizer_of(info)
    assert (again.name, again.switches, dict(again.defaults)) == (
        optimizer.name,
        optimizer.switches,
        optimizer.defaults,
    )
    assert Schedule(3, {"lr": (0.1,), "smoothing": (0.2,)}, {"drag": 0.5}, info).loss_hyperparameters == ("smoothing",)


@pytest.mark.parametrize("name", INNER_OPTIMIZERS)
def test_the_built_in_ones_keep_to_the_protocol(name: str) -> None:
    optimizer = make_inner_optimizer(name, {})
    check_optimizer(optimizer, LAYOUT, split=not needs_layout(optimizer), grouped=True)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("NoRate", "has no lr among its defaults; expected a learning rate of that name"),
        ("TextRate", "the default of lr is '0.1'; expected a finite number"),
        ("Counts", "init(weights) gave a state with a int; expected tensors alone"),
        ("WholeCounts", "init(weights) gave a state with [] int64; expected [] or the weights' shape, and their dtype"),
        ("Raises", "update(weights, state, gradient, h, per_weight) raised KeyError: 'learning_rate' at "),
        ("OneResult", "update returned a Tensor; expected (new weights, new state)"),
        ("OtherState", "update returned a state of another structure than init; expected the same structure"),
        ("InPlace", "update writes into its arguments; expected new tensors: no operations in place"),
        ("Random", "update gives other numbers for the same arguments; expected a function of its arguments alone"),
        ("ReadsOut", "the derivative of update is not that of its values; expected differentiable operations alone"),
        ("ByNumpy", "the derivative of update (torch.func.jvp under vmap) raised "),
        ("Detaches", "the derivative of update is not that of its values; expected differentiable operations alone"),
        ("Adagrad", "a derivative of update is not finite where gradient and state are 0; expected finite derivatives"),
    ],
)
def test_one_that_breaks_the_protocol_is_refused_by_one_line(name: str, problem: str) -> None:
    line = problem_of(name)
    assert problem in line
    assert line.startswith("inner.optimizer: ")
    if name != "TextRate":
        assert f"{MODULE}:{name}" in line


def test_ranks_and_groups_ask_for_more() -> None:
    assert problem_of("Coupled", split=True).startswith(
        "mesh.data: own_optimizers:Coupled moves a weight by what others"
    )
    assert "inner.groups: its update takes no values per group; expected per_weight" in problem_of(
        "Groupless", grouped=True
    )
    for name in ("Coupled", "Groupless"):
        check_optimizer(make_inner_optimizer(f"{MODULE}:{name}", {}), LAYOUT)


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        (
            "own_optimizers:HeavyBal",
            {},
            "has no 'HeavyBal'; expected package.module:function; did you mean own_optimizers",
        ),
        (
            "own_optimizers:HeavyBall",
            {"sing": 1.0},
            "inner.optimizer.sing: unknown key; did you mean inner.optimizer.sign",
        ),
        ("own_optimizers:HeavyBall.x", {}, "is not of the right form"),
        ("own_optimizers:NoUpdate", {}, "gave a NoUpdate without update; expected an object with defaults"),
        (
            "rmsprop",
            {"centred": True},
            "unknown switch; expected centered; did you mean inner.optimizer.centered",
        ),
        ("rmsprop", {"centered": 1}, "1 is a whole number; expected true or false"),
        ("adagrad", {"initial_accumulator_value": -1.0}, "-1.0 is out of range; expected a number of at least 0"),
        ("lionn", {}, "'lionn' is unknown; expected one of sgd, adam"),
    ],
)
def test_a_name_or_an_option_that_is_wrong(name: str, options: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as refused:
        make_inner_optimizer(name, options)
    assert line in str(refused.value)


# ---- in plain PyTorch --------------------------------------------------------------------------------------------


def trained(optimizer: torch.optim.Optimizer, module: nn.Module, schedule: Schedule, steps: int) -> torch.Tensor:
    """The weights after some steps on a function of them alone."""
    driver, parameters = schedule.attach(optimizer, fixed=True), trainable_parameters(module)
    layout = FlatLayout.of(parameters)
    _, gradient = non_quadratic_problem(torch.float64, layout.size, steps)
    for step in range(steps):
        weights = layout.flatten(parameters, torch.float64, "cpu")
        for name, part in layout.views(gradient(weights, step)).items():
            parameters[name].grad = part.clone()
        optimizer.step()
        driver.step()
    return layout.flatten(parameters, torch.float64, "cpu")


GROUPED = Schedule(
    6,
    {"lr.bias": (0.1, 0.05), "lr.rest": (0.02,), "beta1": (0.9, 0.5)},
    {"beta2": 0.99, "eps": 1e-6, "weight_decay": 0.01},
    {"name": "adamw", "groups": {"bias": "bias", "rest": ""}},
)


def test_the_pure_optimizer_steps_like_torchs_with_parameter_groups() -> None:
    modules = [mlp().double()]
    modules.append(copy.deepcopy(modules[0]))
    adamw = make_inner_optimizer("adamw", {})
    pure = PureOptimizer(adamw, modules[0], parameter_groups(modules[0], GROUPED))
    theirs = torch_optimizer(adamw, modules[1], parameter_groups(modules[1], GROUPED))
    assert type(theirs) is torch.optim.AdamW
    weights = [trained(*pair, GROUPED, 6) for pair in zip((pure, theirs), modules, strict=True)]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-13, atol=1e-13)  # six steps' roundings


OWN = Schedule(
    6,
    {"lr": (0.1, 0.05)},
    {"drag": 0.2},
    {"name": f"{MODULE}:HeavyBall", "options": {"sign": 1.0}, "hyperparameters": ["lr", "drag"]},
)


def test_a_schedule_makes_the_users_own_optimizer_and_drives_it(recwarn: pytest.WarningsRecorder) -> None:
    modules = [mlp().double()]
    modules.append(copy.deepcopy(modules[0]))
    own = make_optimizer(OWN, modules[0])
    assert isinstance(own, PureOptimizer)
    sgd = Schedule(6, OWN.values, {"momentum": 0.8, "weight_decay": 0.0}, {"name": "sgd"})
    weights = trained(own, modules[0], OWN, 6), trained(make_optimizer(sgd, modules[1]), modules[1], sgd, 6)
    torch.testing.assert_close(*weights, rtol=1e-13, atol=1e-13)  # 1 − 0.2 is 0.8 to rounding
    assert [str(warning.message) for warning in recwarn if "learned for" in str(warning.message)] == []
    assert own.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize("name", ["lion", "lamb", "muon"])
def test_a_saved_state_continues_as_if_nothing_had_happened(name: str) -> None:
    module = mlp().double()
    optimizer = make_inner_optimizer(name, {})
    schedule = Schedule(
        6, {"lr": (1e-3, 1e-2)}, {key: v for key, v in optimizer.defaults.items() if key != "lr"}, {"name": name}
    )
    first = make_optimizer(schedule, module)
    trained(first, module, schedule, 3)
    saved, resumed = first.state_dict(), copy.deepcopy(module)
    second = make_optimizer(schedule, resumed)
    second.load_state_dict(saved)
    assert torch.equal(trained(first, module, schedule, 3), trained(second, resumed, schedule, 3))


def test_the_users_class_is_the_one_that_the_path_names() -> None:
    assert make_inner_optimizer(f"{MODULE}:HeavyBall", {}).defaults is HeavyBall.defaults
