"""Networks that `fully_shard` has spread over ranks are trained as the plain ones that they were.

As a program, what each rank runs: `… FOLDER`.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launching import clean_environment, start_ranks
from problems import conv_bn, image_task
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from fds_dist import optimize
from fds_dist.common.faults import UserError
from fds_dist.models.handed_in import KEEP, HandedIn
from fds_dist.models.sharded import is_sharded, unsharded

CONFIG: dict[str, Any] = {
    "inner": {"epochs": 1},
    "hyperparameters": {"lr": {"init": 0.05, "buckets": 2, "step": 0.01}},
    "outer": {"optimizer": "sign", "steps": 1},
    "tangents": {"method": "difference"},
    "mesh": {"data": 2},
    "dtype": "float64",
}


def handed_in(module: nn.Module) -> nn.Module:
    return HandedIn(lambda seed: module, KEEP, lambda: torch.randn(2, 4))(0)


def gathered(module: nn.Module) -> nn.Module:
    assert is_sharded(module)
    return unsharded(module)


class Block(nn.Module):
    """With a part that is compiled, a frozen weight, a hook and an attribute of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.first.bias.requires_grad_(False)
        self.scale = 2.0
        self.first.register_forward_hook(doubled)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x))) * self.scale


def doubled(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    return 2 * output


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("parts", ["whole", "one part", "nested", "after a backward pass"])
def test_the_plain_network_comes_back(mesh: DeviceMesh, parts: str) -> None:
    module: Any = Block()
    plain, inputs = copy.deepcopy(module), torch.randn(5, 4)
    if parts != "whole":
        fully_shard(module.first, mesh=mesh)
    if parts != "one part":
        fully_shard(module, mesh=mesh)
    if parts == "after a backward pass":
        module(inputs).sum().backward()
        plain(inputs)  # moves the running statistics alike
    copied: Any = gathered(module)
    assert [type(part) for part in copied.modules()] == [type(part) for part in plain.modules()]
    assert [type(value) for value in copied.parameters()] == [nn.Parameter] * 6
    assert not copied.first.bias.requires_grad
    state, expected = copied.state_dict(), plain.state_dict()
    assert list(state) == list(expected) and all(torch.equal(state[name], expected[name]) for name in state)
    assert torch.equal(copied(inputs), plain(inputs))  # its hook and attribute are there
    assert any(isinstance(part, FSDPModule) for part in module.modules())  # the user's own stays as it was
    assert torch.equal(module(inputs), plain(inputs))


def test_a_lower_precision_of_the_sharding_is_refused(mesh: DeviceMesh) -> None:
    module = nn.Sequential(nn.Linear(4, 3))
    fully_shard(module[0], mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.raises(UserError, match=r"model: 0 is sharded with a mixed-precision policy \(bfloat16\); expected"):
        gathered(module)


def test_a_function_that_gives_a_sharded_network_is_refused(mesh: DeviceMesh) -> None:
    # Not every rank calls it alike, so that gathering would wait for ever.
    module = nn.Sequential(nn.Linear(4, 3))
    fully_shard(module[0], mesh=mesh)
    with pytest.raises(UserError, match="model: 0 is sharded by fully_shard; expected the module itself"):
        handed_in(module)


def test_compiled_parts_are_trained_without_their_wrapper() -> None:
    module = nn.Sequential(torch.compile(nn.Linear(4, 3)), nn.Sequential(torch.compile(nn.Linear(3, 2))))  # type: ignore[arg-type]
    copied = handed_in(module)
    assert list(copied.state_dict()) == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]
    assert "0._orig_mod.weight" in module.state_dict()


def program(folder: Path) -> None:
    """What each rank runs: a search on the sharded network, and on the same one as it was."""
    dist.init_process_group("gloo")
    task = image_task()
    torch.manual_seed(0)
    plain = conv_bn()
    sharded = copy.deepcopy(plain)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    for name, module in {"plain": plain, "sharded": sharded}.items():
        optimize({**CONFIG, "name": name, "output_dir": str(folder)}, task=task, model=module)
    dist.destroy_process_group()


def test_two_ranks_learn_the_same_as_from_the_plain_network(tmp_path: Path) -> None:
    code = f"import runpy, sys; sys.argv = ['', {str(tmp_path)!r}]; runpy.run_path({__file__!r}, run_name='__main__')"
    for rank in start_ranks(["-c", code], 2, [tmp_path], clean_environment()):
        assert (rank.status, rank.err) == (0, "")
    plain, sharded = (json.loads((tmp_path / name / "history.jsonl").read_text()) for name in ("plain", "sharded"))
    assert sharded["hypergradients"] == plain["hypergradients"]
    assert all(abs(number) > 1e-6 for number in plain["hypergradients"]["lr"])


if __name__ == "__main__":
    program(Path(sys.argv[1]))
