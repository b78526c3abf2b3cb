"""The moving average of the weights against torch's, step by step, and its derivative against differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fds_dist.tangents.averaging import Averaged
from fds_dist.tangents.optimizers import SGD, Adam, InnerOptimizer, judged

STEPS, DECAY = 200, 0.9
CASES: dict[str, tuple[InnerOptimizer, Any, dict[str, float]]] = {
    "sgd": (SGD(), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "adamw": (Adam(decoupled=True), torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]), dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("decay", [0.0, DECAY, 0.999])
def test_it_is_torch_s_average_after_every_step(name: str, decay: float) -> None:
    inside, theirs, options = CASES[name]
    module = nn.Linear(5, 1, bias=False).double()
    optimizer = theirs(module.parameters(), **options)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
    ours, weights = Averaged(inside, decay), module.weight.detach().flatten().clone()
    state = ours.init(weights)
    h = {key: torch.tensor(value, dtype=torch.float64) for key, value in {**ours.defaults, **options}.items()}
    for gradient in random(STEPS, 5):
        module.weight.grad = gradient[None].clone()
        optimizer.step()
        average.update_parameters(module)
        weights, state = ours.update(weights, state, gradient, h)
        # Roundings of 1e-16 per step, which the average forgets: the optimizers themselves agree to as much.
        torch.testing.assert_close(
            judged(ours, weights, state), average.module.get_parameter("weight").flatten(), rtol=1e-13, atol=1e-15
        )


def test_its_tangent_is_that_of_differences() -> None:
    ours = Averaged(SGD(), DECAY)
    fixed = {"momentum": torch.tensor(0.9, dtype=torch.float64), "weight_decay": torch.tensor(0.0)}

    def average_after(lr: Tensor) -> Tensor:
        weights = random(5)
        state = ours.init(weights)
        for step in range(6):
            weights, state = ours.update(weights, state, weights**3 + step, {"lr": lr, **fixed})
        return judged(ours, weights, state)

    lr, nudge = torch.tensor(0.01, dtype=torch.float64), 1e-6
    tangent = jvp(average_after, (lr,), (torch.ones_like(lr),))[1]
    difference = (average_after(lr + nudge) - average_after(lr - nudge)) / (2 * nudge)
    torch.testing.assert_close(tangent, difference, rtol=1e-7, atol=0)  # rounding 1e-16 / 1e-6, and room for curvature


def test_weights_without_an_average_are_judged_themselves() -> None:
    weights = random(5)
    assert judged(SGD(), weights, SGD().init(weights)) is weights
