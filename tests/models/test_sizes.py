"""The sizes of networks, told before they are built."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import nn

from fds_dist.common.faults import UserError
from fds_dist.models import build_model, size

HOMES = {"mlp": "mlp", "wrn": "wide_resnet", "tra": "transformer"}
"""First letters of a network → its module."""


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("mlp", {"hidden": [5, 7]}, (3, 4, 4)),
        ("mlp", {"hidden": []}, (6,)),
        ("wrn-10-1", {}, (1, 8, 8)),
        ("wrn-16-2", {}, (3, 8, 8)),
        ("transformer", {"layers": 3, "width": 8, "heads": 2}, (16,)),
    ],
)
def test_the_number_of_weights_is_known_before(
    name: str, options: dict[str, object], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    home = import_module(f"fds_dist.models.{HOMES[name[:3]]}")
    monkeypatch.setattr(home, "check_size", lambda name, weights, layers: told.append(weights))
    module = build_model(name, options, input_shape=shape, classes=10, seed=0)
    assert told == [sum(parameter.numel() for parameter in module.parameters())]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("wrn-100000-1", {}, "wrn-100000-1 would have 100,000 layers and 1,620,182,490 weights"),
        ("wrn-10-100000", {}, "wrn-10-100000 would need .* TiB of memory for its .* weights"),
        (
            "mlp",
            {"hidden": [10**9, 10**9]},
            "mlp would need .* TiB of memory for its 1,000,003,084,000,000,010 weights",
        ),
        ("mlp", {"hidden": [2] * 5000}, "mlp would have 5,001 layers"),
    ],
)
def test_an_absurd_network_is_told_before_it_is_built(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_model(name, options, input_shape=(3, 32, 32), classes=10, seed=0)


def layers(count: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(nn.Linear(10, 10) for _ in range(count)))


def test_a_network_of_others_is_refused_as_soon_as_it_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "free_bytes", lambda device: 4 * 10_000)
    built: list[torch.Tensor] = []
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: built.append(self.weight))
    with size.size_checked("theirs"):
        layers(90)()  # 9,900 weights
    with pytest.raises(UserError, match=r"theirs would have more than 10,0\d\d weights"), size.size_checked("theirs"):
        layers(200)()
    assert len(built) < 90 + 92
    layers(200)()  # outside, nothing is refused
