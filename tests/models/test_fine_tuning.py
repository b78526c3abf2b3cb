"""Weights from a file, and frozen parts: `model.weights`, `model.weights_except` and `model.freeze`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from own_tasks import CLASSES, Blobs, blobs
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import fds_dist
from fds_dist.build import Build, build, model_builder
from fds_dist.common.faults import UserError
from fds_dist.config import Config, dump_config, read_draft
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.estimators.reverse import estimate_reverse
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.run import InnerRun
from fds_dist.models.fine_tuning import FineTuned
from fds_dist.tasks import build_task

FILE = "weights.safetensors"

ROUNDING = 1e-11
"""Float64: the same sums in another order, over ten steps that amplify them."""

BASE: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"epochs": 1},
    "outer": {"optimizer": "sign", "steps": 2},
    "hyperparameters": {"lr": {"init": 0.1, "step": 0.05, "buckets": 2}},
}
DIGITS = {**BASE, "task": {"name": "digits"}, "inner": {"epochs": 0.2}}


def test_a_first_knot_at_zero_is_a_warm_up_that_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(Layers().state_dict(), FILE)
    model = {"name": "test_fine_tuning:Layers", "weights": FILE}
    rate = {"init": [0.0, 0.1, 0.05], "step": 0.01, "buckets": 3, "shape": "linear"}
    config = {**BASE, "model": model, "hyperparameters": {"lr": rate, "momentum": 0.5}, "inner": {"steps": 9}}
    result = fds_dist.optimize({**config, "outer": {"steps": 1}}, progress=False)
    assert all(result.history[0].hypergradients["lr"])  # the steps between the first two knots read the first
    assert 0 <= result.schedule.at(0)["lr"] < result.schedule.at(2)["lr"] < result.schedule.at(4)["lr"]


class Layers(nn.Module):
    """Two blocks of convolution and batch-norm, then a head; images [B, 1, 6, 6] -> [B, classes]."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
        self.second = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
        self.head = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))).flatten(1))


def make(width: int = 3) -> nn.Module:
    """A network by name, as `test_fine_tuning:make`."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.Tanh(), nn.Linear(width, CLASSES))


def with_keys_of_its_own(weights: str, freeze: bool) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES if (weights, freeze) == ("BEST", True) else 1))


class Tied(nn.Module):
    """One matrix in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(36, CLASSES)
        self.other = nn.Linear(36, CLASSES)
        self.other.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x.flatten(1)) + self.other(x.flatten(1))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def saved(module: nn.Module, *, without: str = "", path: str = FILE) -> dict[str, Tensor]:
    """The module's state_dict with random values, but for names that hold `without`, after writing it to `path`."""
    state = {
        name: torch.rand_like(tensor) + 0.5 if tensor.is_floating_point() else tensor.clone()
        for name, tensor in module.state_dict().items()
        if not (without and without in name)
    }
    save_file(state, path)
    return state


def config_of(model: Mapping[str, Any], base: Mapping[str, Any]) -> Config:
    config = read_draft({**base, "model": model} if model else base).config
    assert config is not None
    return config


def built(model: Mapping[str, Any] | None = None, given: Any = None, base: Mapping[str, Any] = BASE) -> Build:
    return build(read_draft(config_of(model or {}, base)), LaunchEnvironment(), model=given)


def lines(model: Mapping[str, Any], given: Any = None, base: Mapping[str, Any] = BASE) -> list[str]:
    with pytest.raises(UserError) as caught:
        built(model, given, base)
    return str(caught.value).splitlines()


# --- weights ---


@pytest.mark.parametrize(
    ("model", "given", "base"),
    [
        ({"name": "mlp", "hidden": [4]}, None, DIGITS),
        ({"name": "shufflenet_v2_x0_5"}, None, DIGITS),
        ({"name": "test_fine_tuning:make"}, None, BASE),
        ({}, Layers(), BASE),
        ({}, None, BASE),
    ],
    ids=["built in", "torchvision", "by name", "handed in", "of the task"],
)
def test_every_outer_step_starts_from_the_file(model: dict[str, Any], given: Any, base: Mapping[str, Any]) -> None:
    before = copy.deepcopy(given.state_dict()) if given else {}
    task = build_task(base["task"]["name"], {}, seed=0)
    state = saved(model_builder(config_of(model, base), task, given)(0))
    builder = model_builder(config_of({**model, "weights": FILE}, base), task, given)
    for seed in (0, 1):
        there = builder(seed).state_dict()
        assert there.keys() == state.keys() and all(torch.equal(there[name], state[name]) for name in state)
    assert isinstance(builder, FineTuned)
    assert builder.remarks() == [f"every outer step starts from the weights in {FILE} (model.weights)"]
    assert all(torch.equal(before[name], tensor) for name, tensor in (given.state_dict() if given else {}).items())


def test_what_is_excepted_is_drawn_as_without_a_file_whatever_the_file_holds() -> None:
    plain = {"name": "mlp", "hidden": [4]}
    network = built(plain, base=DIGITS).problem.build_model
    saved(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 7), nn.Linear(7, 7)))  # another head
    result = built({**plain, "weights": FILE, "weights_except": "^[34]"}, base=DIGITS)
    assert result.remarks[0].endswith("but for 3.weight, 3.bias (model.weights)")
    heads = []
    for seed in (0, 1):
        here, there = (builder(seed).state_dict() for builder in (result.problem.build_model, network))
        heads.append(here["3.weight"])
        assert torch.equal(here["3.weight"], there["3.weight"]) and not torch.equal(here["1.weight"], there["1.weight"])
    assert not torch.equal(*heads)


def test_redraw_draws_what_is_excepted_alone() -> None:
    state = saved(module := Layers())
    options = {"init": "redraw", "weights": FILE}
    (line,) = lines(options, module)
    assert line.startswith("model.init: redraw has no effect: every weight comes from model.weights; expected")
    first, second = map(built({**options, "weights_except": "head"}, module).problem.build_model, (0, 1))
    assert not torch.equal(first.head.weight, second.head.weight)  # type: ignore[union-attr, arg-type]
    assert all(torch.equal(first.state_dict()[name], state[name]) for name in state if "head" not in name)


def test_a_tied_parameter_may_be_in_the_file_once() -> None:
    state = saved(Tied(), without="other.weight")
    network = built({"weights": FILE}, Tied()).problem.build_model(0)
    assert torch.equal(network.other.weight, state["encode.weight"])  # type: ignore[union-attr, arg-type]


def test_half_precision_is_read_too() -> None:
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in make().state_dict().items()}, "w.safetensors")
    network = built({"name": "test_fine_tuning:make", "weights": "w.safetensors"}).problem.build_model(0)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_function_with_parameters_of_these_names_gets_the_values() -> None:
    result = built({"name": "test_fine_tuning:with_keys_of_its_own", "weights": "BEST", "freeze": True})
    assert all(parameter.requires_grad for parameter in result.problem.build_model(0).parameters())


@pytest.mark.parametrize(
    ("prepare", "options", "expected"),
    [
        (lambda: saved(make(), without="3.bias"), {}, ["lacks names that the network has: 3.bias; expected all of"]),
        (
            lambda: save_file({f"module.{name}": value for name, value in make().state_dict().items()}, FILE),
            {},
            [
                "lacks names that the network has: 1.weight (nearest: module.1.weight), 1.bias (nearest: module.1.bias)"
                ", 3.weight (nearest: module.3.weight) and 1 more",
                "has names that the network lacks: module.1.bias (nearest: 1.bias)",
            ],
        ),
        (
            lambda: saved(make(5)),
            {},
            ["has other shapes than the network: 1.weight (5×36 in the file, 3×36 in the network), 1.bias (5 in"],
        ),
        (lambda: None, {}, ["weights.safetensors: No such file or directory; expected a file that safetensors.torch"]),
        (lambda: Path(FILE).write_text("PK"), {}, ["is no safetensors file"]),
        (lambda: None, {"weights": 3}, ["3 is a whole number; expected text"]),
        (lambda: None, {"weights": "$ABSENT/w"}, ["there is no environment variable ABSENT"]),
    ],
    ids=["missing", "prefix", "shapes", "no file", "no safetensors", "kind", "variable"],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_a_line(
    prepare: Callable[[], object], options: dict[str, Any], expected: list[str]
) -> None:
    prepare()
    told = lines({"name": "test_fine_tuning:make", "weights": FILE, **options})
    assert len(told) == len(expected)
    for line, part in zip(told, expected, strict=True):
        assert line.startswith("model.weights: ") and part in line


def test_variables_of_the_environment_are_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    saved(make())
    config = read_draft({**BASE, "model": {"name": "test_fine_tuning:make", "weights": "$HERE/weights.safetensors"}})
    assert str(tmp_path) in build(config, LaunchEnvironment()).remarks[0]
    assert config.config is not None and "freeze" not in dump_config(config.config)


# --- frozen parts ---


def test_frozen_parts_stay_in_the_run_as_in_a_plain_loop() -> None:
    """The first block is frozen with its running statistics, the second trains; on the engine and by hand."""
    config = {**BASE, "dtype": "float64", "inner": {"epochs": 2.5}}
    result = built({"freeze": "^first"}, module := Layers(), config)
    frozen = sum(parameter.numel() for parameter in module.first.parameters())
    whole = sum(parameter.numel() for parameter in module.parameters())
    assert f"{whole - frozen} of {whole} weights are trained, the others are frozen (model.freeze)" in result.remarks
    training, _ = run_horizon(InnerRun(result.problem, [0.1, 0.1], 0, 10))

    module = copy.deepcopy(module).double().train()
    module.first.requires_grad_(False).eval()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
    for step in range(10):
        x, y = Blobs().train_batches(0, step // 4)[step % 4]
        optimizer.zero_grad()
        F.cross_entropy(module(x.double()), y).backward()
        optimizer.step()
    weights = training.network.layout.views(training.state.weights)
    assert weights.keys() == {name for name, _ in module.named_parameters() if not name.startswith("first")}
    assert all(
        torch.allclose(weights[name], module.get_parameter(name), rtol=ROUNDING, atol=ROUNDING) for name in weights
    )
    for name, buffer in module.named_buffers():
        assert torch.allclose(training.state.buffers[name], buffer, rtol=ROUNDING, atol=ROUNDING)
        assert torch.equal(training.state.buffers[name], training.network.initial_buffers[name]) == ("first" in name)


def test_a_linear_probe_has_tangents_of_the_head_alone() -> None:
    saved(Layers(classes=7))
    model = {"weights": FILE, "weights_except": "^head", "freeze": r"^(?!head\.)"}
    for module in (Layers(), Layers().eval()):  # a module that rests as a whole trains, but for its frozen parts
        network = built(model, module).problem.network(0)
        assert network.layout.names == ("head.weight", "head.bias")
        assert [part.training for part in network.module.modules() if isinstance(part, nn.BatchNorm2d)] == [False] * 2
        assert network.module.training


def test_a_whole_recipe_has_one_derivative_by_two_estimators() -> None:
    """Pretrained weights, a new head, frozen first layers, a warm-up bucket and a learning rate per group.

    The check against plain PyTorch passes before.
    """
    saved(Layers(classes=7))
    rate = {"init": 0.01, "buckets": 3, "step": 0.5, "scale": "log", "per_group": {"head": {"init": 0.1}}}
    config = {
        **BASE,
        "dtype": "float64",
        "inner": {"optimizer": "adamw", "epochs": 1.5, "groups": {"head": "^head", "body": ".*"}},
        "hyperparameters": {"lr": rate, "weight_decay": {"init": 0.01, "step": 0.5, "scale": "log"}},
    }
    result = built({"weights": FILE, "weights_except": "^head", "freeze": "^first"}, Layers(), config)
    assert any("checked against plain PyTorch" in remark for remark in result.remarks)
    run = InnerRun(result.problem, result.problem.trial_values(), 0, 6)
    forward, reverse = estimate_forward(run), estimate_reverse(run)
    assert len(forward.hypergradients) == 7 and all(forward.hypergradients)
    assert forward.hypergradients == pytest.approx(reverse.hypergradients, rel=ROUNDING)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"freeze": "frist"}, "'frist' matches no parameter of Layers; expected a regular expression for names such"),
        ({"freeze": "."}, "'.' freezes every parameter that was trained; expected a regular expression that"),
        ({"freeze": "("}, "'(' cannot be compiled"),
        ({"freeze": True}, "true is a switch; expected a regular expression"),
        ({"weights_except": "head"}, "has no effect without model.weights"),
    ],
)  # fmt: skip
def test_patterns_that_cannot_work_are_a_line(model: dict[str, Any], expected: str) -> None:
    (line,) = lines(model, Layers())
    assert line.startswith(f"model.{next(iter(model))}: ") and expected in line


# --- what resumes and retrains ---


def test_a_run_goes_on_and_retrains_from_the_file_that_it_began_with_alone() -> None:
    state = saved(Layers())
    config = {**BASE, "model": {"weights": FILE, "freeze": "first"}, "name": "run"}
    result = fds_dist.optimize(config, ["outer.steps=1"], task=blobs(), model=Layers(), progress=False)
    recorded = json.loads((result.run_dir / "environment.json").read_text())["weights_file"]
    assert recorded["path"] == FILE and len(recorded["sha256"]) == 64

    (seed,) = fds_dist.retrain(result.run_dir, ["epochs=1"], task=blobs(), model=Layers(), progress=False).results
    trained = load_file(seed.folder / "last.safetensors")
    same = {name for name in state if torch.equal(trained[name], state[name])}
    # Batch-norm takes the bias before it away again: its gradient is zero, to rounding.
    assert same - {"second.0.bias"} == {name for name in state if name.startswith("first")}

    saved(Layers())  # with other values
    for again in (fds_dist.optimize, fds_dist.retrain):
        where: Any = {"resume": result.run_dir} if again is fds_dist.optimize else {"run_dir": result.run_dir}
        with pytest.raises(UserError, match=r"weights\.safetensors is not what the run of runs/run began with"):
            again(**where, task=blobs(), model=Layers(), progress=False)
