"""Modules that the engine would not train as plain PyTorch does: each is refused in one line that names the way out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import CLASSES, images
from torch import Tensor, nn

from fds_dist.common.faults import UserError
from fds_dist.models.handed_in import KEEP, REDRAW, HandedIn

INPUTS = images(8)[0].float()


def handed_in(model: nn.Module | Callable[[int], Any], init: str = KEEP) -> HandedIn:
    return HandedIn((lambda seed: model) if isinstance(model, nn.Module) else model, init, lambda: INPUTS)


def refusal(model: nn.Module | Callable[[int], Any], init: str = KEEP) -> str:
    with pytest.raises(UserError) as caught:
        handed_in(model, init).remarks()
    (fault,) = caught.value.faults
    return str(fault)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def changed(change: Callable[[Any], object]) -> nn.Module:
    module = small()
    change(module)
    return module


def held_twice(module: Any) -> None:
    module[1].shortcut = [module[1].weight]


def sharing_memory(module: Any) -> None:
    module.append(nn.Linear(CLASSES, 5))
    module[4].weight.data = module[3].weight.data.T


def buffer_on_weights(module: Any) -> None:
    module[1].register_buffer("row", module[1].weight.detach()[0])


def patched(module: Any) -> None:
    forward = module[1].forward
    module[1].forward = lambda x: 2 * forward(x)


def locked(module: Any) -> None:
    module.lock = threading.Lock()


def as_complex(module: Any) -> None:
    module[1].weight = nn.Parameter(module[1].weight.to(torch.complex64))


WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "nothing to train": (lambda: small().requires_grad_(False), "Sequential has no parameter that requires a gradient"),
    "no parameters": (nn.Flatten, "Flatten has no parameter that requires a gradient"),
    "meta": (lambda: changed(lambda m: m[1].to("meta")), "1.weight is on the meta device"),
    "complex": (lambda: changed(as_complex), "the parameter 1.weight is complex64; expected real floating-point"),
    "gradient hook": (
        lambda: changed(lambda m: m[1].weight.register_hook(lambda g: g)),
        "the parameter 1.weight has a gradient hook, which would not run here",
    ),
    "hook after accumulation": (
        lambda: changed(lambda m: m[1].weight.register_post_accumulate_grad_hook(lambda p: None)),
        "the parameter 1.weight has a gradient hook, which would not run here",
    ),
    "backward hook": (
        lambda: changed(lambda m: m[1].register_full_backward_hook(lambda *gradients: None)),
        "1 has backward hooks, which may change gradients",
    ),
    "backward pre-hook": (
        lambda: changed(lambda m: m[1].register_full_backward_pre_hook(lambda *gradients: None)),
        "1 has backward hooks, which may change gradients",
    ),
    "scripted": (lambda: torch.jit.script(small()[1]), "RecursiveScriptModule is a scripted module"),
    "quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(small(), {nn.Linear}),
        "1 is quantized (Linear): it has no gradient; expected the network before its quantization",
    ),
    "wrapped part": (lambda: nn.Sequential(nn.DataParallel(small())), "0 is a part inside DataParallel"),
    "held twice": (lambda: changed(held_twice), "the parameter 1.weight is also held in 1.shortcut"),
    "memory of two": (lambda: changed(sharing_memory), "3.weight and 4.weight share their memory, but are two tensors"),
    "memory of a buffer": (lambda: changed(buffer_on_weights), "1.row and 1.weight share their memory"),
    "forward in a closure": (
        lambda: changed(patched),
        "the forward of 1 was replaced by a function that holds modules",
    ),
    "not to be copied": (lambda: changed(locked), "Sequential cannot be copied: cannot pickle '_thread.lock' object"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_trained_as_it_is_takes_one_line(name: str) -> None:
    make, start = WRONG[name]
    line = refusal(make())
    assert line.startswith(f"model: {start}"), line
    assert "; expected " in line


def test_a_builder_that_draws_its_own_random_numbers_is_refused() -> None:
    random = torch.Generator()

    def build(seed: int) -> nn.Module:
        module = small()
        nn.init.normal_(module[1].weight, generator=random)  # type: ignore[arg-type]
        return module

    assert refusal(build).startswith(
        "model: building the network twice with the same seed gave different values of 1.weight; expected"
    )


def test_parameters_in_a_plain_list_are_told() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(36, 5), nn.Linear(5, 5)]
            self.teacher = [nn.Linear(36, 5).requires_grad_(False)]
            self.head = nn.Linear(5, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers[1](self.layers[0](x.flatten(1))))

    remarks = handed_in(Listed()).remarks()
    assert remarks[1:] == ["parameters in plain Python containers are not trained: layers"]


def lazy() -> nn.Module:
    parts = nn.Flatten(), nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.Dropout(0.5), nn.LazyLinear(CLASSES)
    return nn.Sequential(*parts)


@pytest.mark.parametrize("model", [lazy(), lambda seed: lazy()], ids=["module", "function"])
@pytest.mark.parametrize("init", [KEEP, REDRAW])
def test_a_lazy_network_takes_its_shapes_from_the_first_batch(model: Any, init: str) -> None:
    network = handed_in(model, init)
    assert network.remarks() == []  # it has no weights of its own
    module: Any = network(0)
    assert [tuple(parameter.shape) for parameter in module.parameters()] == [(5, 36), (5,), (5,), (5,), (4, 5), (4,)]
    assert all(part.training for part in module.modules())
    assert torch.equal(module[2].running_mean, torch.zeros(5)) and module[2].num_batches_tracked == 0
    if isinstance(model, nn.Module):
        assert nn.parameter.is_lazy(model[1].weight)  # type: ignore[index]


def test_a_lazy_part_that_no_batch_reaches_is_refused() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = small(), nn.LazyLinear(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    assert refusal(Unused()) == (
        "model: unused.weight, unused.bias still have no shape after a first batch; "
        "expected a network that has been called once"
    )


def test_compiled_and_wrapped_networks_are_trained_without_their_wrapper() -> None:
    module = small()
    for wrapped in (torch.compile(module), nn.DataParallel(module)):
        assert type(handed_in(wrapped)(0)) is nn.Sequential  # type: ignore[arg-type]
    module.compile()
    assert handed_in(module)(0)._compiled_call_impl is None


@pytest.mark.parametrize("make", [lambda: nn.LSTM(4, 5), lambda: nn.MultiheadAttention(4, 2), nn.Bilinear])
def test_ordinary_networks_pass(make: Callable[..., nn.Module]) -> None:
    module = make(2, 3, 4) if make is nn.Bilinear else make()
    assert len(handed_in(module).remarks()) == 1
