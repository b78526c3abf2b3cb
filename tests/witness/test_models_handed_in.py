"""The network trained is the one handed in: the engine beside a plain loop of torch.optim on the user's own module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import CLASSES, image_task, relative_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from fds_dist.build import build
from fds_dist.common.modules import independent_copy
from fds_dist.config import read_draft
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun
from fds_dist.models.handed_in import KEEP, SAME_START, HandedIn

ROUNDING = 1e-11
"""Float64: the same sums in another order, over ten steps that amplify them."""

DIFFERENCES = 1e-6
"""Central differences in float64: rounding (1e-16/STEP) and the third derivative (STEP²)."""

STEP = 1e-5
HORIZON = 10
RATES = [0.2, 0.1]

CONFIG: dict[str, Any] = {
    "task": {"name": "images"},
    "dtype": "float64",
    "inner": {"epochs": 2},
    "hyperparameters": {"lr": {"init": 0.2, "step": 0.1, "buckets": 2}, "momentum": 0.9},
}


class Backbone(nn.Module):
    """Batch-norm on top of a convolution, then a head; images [B, 1, 6, 6] -> [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.head = nn.Linear(48, CLASSES)
        nn.init.normal_(self.bn.running_mean)  # type: ignore[arg-type]
        nn.init.uniform_(self.bn.running_var, 0.5, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bn(self.conv(x))).flatten(1))


def frozen_backbone() -> nn.Module:
    module = Backbone()
    module.conv.requires_grad_(False)
    module.bn.requires_grad_(False)
    return module


def batch_norm_at_rest() -> nn.Module:
    module = frozen_backbone()
    module.bn.eval()  # type: ignore[operator]
    return module


class KeepsBatchNormAtRest(Backbone):
    def train(self, mode: bool = True) -> KeepsBatchNormAtRest:
        super().train(mode)
        self.bn.eval()
        return self


class Tied(nn.Module):
    """The same weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(36, 5), nn.Linear(5, 36, bias=False), nn.Linear(36, CLASSES)
        self.down.weight = nn.Parameter(self.up.weight.detach().T.clone())
        self.again = nn.Linear(36, 5)
        self.again.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.down(torch.tanh(self.up(x.flatten(1)))))
        return self.head(torch.tanh(self.down(self.again(hidden))))


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).T


class Phases(nn.Module):
    """A complex table as buffer (rotary embeddings have one), and weights in a list and under names."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.polar(torch.ones(18), torch.arange(18.0)))
        self.weights = nn.ParameterList([torch.randn(36, 5) / 6, torch.randn(5, CLASSES)])
        self.scales = nn.ParameterDict({"scale": torch.ones(CLASSES)})

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.flatten(1).unflatten(1, (18, 2))) * self.table
        hidden = torch.tanh(torch.view_as_real(turned).flatten(1) @ self.weights[0])
        return hidden @ self.weights[1] * self.scales["scale"]


def small(*changes: Callable[[nn.Linear], object]) -> nn.Module:
    """A network with these changes of its square layer."""
    square = nn.Linear(6, 6)
    for change in changes:
        change(square)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.Tanh(), square, nn.Tanh(), nn.Linear(6, CLASSES))


def hooked() -> nn.Module:
    module = small()
    module[3].register_forward_hook(lambda layer, inputs, output: output * 2)  # type: ignore[index, union-attr]
    module[5].register_forward_pre_hook(lambda layer, inputs: (inputs[0] + inputs[0] ** 2,))  # type: ignore[index]
    return module


def pruned(layer: nn.Linear) -> None:
    prune.random_unstructured(layer, "weight", amount=0.5)


def symmetric(layer: nn.Linear) -> None:
    parametrize.register_parametrization(layer, "weight", Symmetric())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "frozen backbone": frozen_backbone,
    "batch-norm at rest": batch_norm_at_rest,
    "a train() of its own": KeepsBatchNormAtRest,
    "at rest as a whole": lambda: Backbone().eval(),
    "tied weights": Tied,
    "a parametrization": lambda: small(symmetric),
    "orthogonal": lambda: small(parametrizations.orthogonal),
    "old weight_norm": lambda: small(nn.utils.weight_norm),
    "pruned": lambda: small(pruned),
    "forward hooks": hooked,
    "complex buffer": Phases,
    "DataParallel": lambda: nn.DataParallel(small()),
}


def made(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        return NETWORKS[name]()


def problem_of(model: Any, val_batch_norm: str = "batch", **model_options: Any) -> Problem:
    config = {**CONFIG, "outer": {"optimizer": "sign", "val_batch_norm": val_batch_norm}}
    if model_options:
        config["model"] = model_options
    return build(read_draft(config), LaunchEnvironment(), image_task(), model).problem


def in_double(module: nn.Module) -> nn.Module:
    """With every tensor in double precision; `nn.Module.double` leaves complex ones single."""
    convert = {torch.float32: torch.float64, torch.complex64: torch.complex128}
    return module._apply(lambda tensor: tensor.to(convert.get(tensor.dtype, tensor.dtype)))


def plain_run(name: str, rates: list[float], val_batch_norm: str) -> tuple[float, nn.Module]:
    """Validation loss and module after a loop as its owner would write it."""
    module, task = in_double(made(name)), image_task()
    module = module.module if isinstance(module, nn.DataParallel) else module
    module.train()
    if name == "batch-norm at rest":
        module.bn.eval()  # type: ignore[union-attr, operator]
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for step in range(HORIZON):
        optimizer.param_groups[0]["lr"] = rates[2 * step // HORIZON]
        x, y = list(task.train_batches(0, 0))[step % 5]
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d) and part.training]  # none at rest
    last = copy.deepcopy(dict(module.named_buffers()))
    module.eval()
    for part in norms if val_batch_norm == "batch" else ():
        part.training = True
    with torch.no_grad():
        loss = F.cross_entropy(module(task.val[0]), task.val[1]).item()
    for buffer_name, buffer in module.named_buffers():
        buffer.copy_(last[buffer_name])
    return loss, module


@pytest.mark.parametrize("val_batch_norm", ["batch", "running"])
@pytest.mark.parametrize("name", NETWORKS)
def test_training_equals_a_plain_loop(name: str, val_batch_norm: str) -> None:
    run = InnerRun(problem_of(made(name), val_batch_norm), RATES, 0, HORIZON)
    loss, module = plain_run(name, RATES, val_batch_norm)
    training, _ = run_horizon(run)
    weights = training.network.layout.views(training.state.weights)
    expected = {key: parameter for key, parameter in module.named_parameters() if parameter.requires_grad}
    assert weights.keys() == expected.keys()
    assert all(relative_error(weights[key], expected[key]) < ROUNDING for key in weights)
    for key, buffer in module.named_buffers():
        assert torch.allclose(training.state.buffers[key], buffer, rtol=ROUNDING, atol=ROUNDING)
    estimate = estimate_forward(run)
    assert estimate.val_loss == pytest.approx(loss, rel=ROUNDING)
    for element in (0, 1):
        ahead, behind = (
            plain_run(name, [rate + (index == element) * h for index, rate in enumerate(RATES)], val_batch_norm)[0]
            for h in (STEP, -STEP)
        )
        assert estimate.hypergradients[element] == pytest.approx((ahead - behind) / (2 * STEP), rel=DIFFERENCES)


def state_of(module: nn.Module) -> dict[str, Any]:
    """All of a module that a careless engine would change."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    facts: dict[str, Any] = {
        key: (id(tensor), tensor.dtype, tensor.device, tensor.requires_grad, tensor.detach().clone().tolist())
        for key, tensor in tensors.items()
    }
    for path, part in module.named_modules():
        hooks = [list(getattr(part, key)) for key in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        kinds = [type(hook) for hook in part._forward_pre_hooks.values()]
        facts[f"part {path}"] = (id(part), type(part), part.training, hooks, kinds, sorted(vars(part)))
    return facts


@pytest.mark.parametrize("how", ["module", "function"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_users_module_is_left_as_it_was(name: str, how: str) -> None:
    module = made(name)
    before = state_of(module)
    problem = problem_of(module if how == "module" else lambda seed: module)
    starts = [problem.network(number).initial_weights for number in (0, 1)]
    estimate_forward(InnerRun(problem, RATES, 0, 3))
    assert state_of(module) == before
    assert all(torch.equal(start, problem.network(1).initial_weights) for start in starts)  # not the trained ones
    torch.optim.SGD(module.parameters(), lr=0.1)  # refuses what is no parameter


def test_hardsigmoid_of_the_users_stays_its_own() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES), nn.Hardsigmoid())
    problem_of(module).network(0)
    assert type(module[2]) is nn.Hardsigmoid


def test_a_copy_has_the_values_and_shares_no_memory() -> None:
    module = made("old weight_norm")
    copied = independent_copy(module)
    for ours, theirs in zip(copied.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr()
    assert torch.equal(copied(image_task().val[0].float()), module(image_task().val[0].float()))


def test_parts_at_rest_are_named_the_outermost_alone() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(36, 5), nn.Sequential(nn.Dropout())), nn.Linear(5, 4))
    assert HandedIn(lambda seed: module, KEEP, lambda: None).remarks() == [SAME_START]
    module[1].eval()  # type: ignore[operator]
    *_, line = HandedIn(lambda seed: module, KEEP, lambda: None).remarks()
    assert line == "stays in evaluation mode, as it was handed in (module.train() ends that): 1"
