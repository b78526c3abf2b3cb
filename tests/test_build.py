"""From a config to objects: what is built, and the faults that only show there."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy
import pytest
import torch
from own_tasks import Blobs
from torch import Tensor, nn
from torch.nn import functional as F

from fds_dist.build import Build, build
from fds_dist.common.domain import BELOW_ONE
from fds_dist.common.faults import UserError
from fds_dist.config import read_draft
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.models.handed_in import SAME_START

BASE: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"epochs": 2},
    "hyperparameters": {"lr": {"init": 0.1, "step": 0.05, "buckets": 2}},
}


def built(overrides: list[str] | None = None, base: Mapping[str, Any] = BASE, **given: Any) -> Build:
    return build(read_draft(base, overrides or []), LaunchEnvironment(), **given)


def faults(*overrides: str, **given: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        built(list(overrides), **given)
    return list(map(str, caught.value.faults))


# --- hyperparameters ---


@pytest.mark.parametrize(
    ("override", "bounds"),
    [
        ("hyperparameters.momentum={init: 0.5, step: 0.1}", (0.0, BELOW_ONE)),
        ("hyperparameters.momentum={init: 0.5, step: 0.1, min: null, max: null}", (-math.inf, math.inf)),
        ("hyperparameters.momentum={init: 0.5, step: 0.1, max: 0.9}", (0.0, 0.9)),
        ("hyperparameters.weight_decay={init: 0, step: 0.1}", (0.0, math.inf)),
    ],
)
def test_a_bound_left_out_is_the_natural_one_and_null_is_none(override: str, bounds: tuple[float, float]) -> None:
    owner = built([override]).problem.space.learned[-1]
    assert owner.bounds == bounds


def test_hyperparameters_left_out_or_given_as_a_number_are_fixed() -> None:
    space = built(["hyperparameters.momentum=0.5"]).problem.space
    assert space.bucket_counts == {"lr": 2}
    assert space.fixed == {"momentum": 0.5, "weight_decay": 0.0}


class Smoothing(Blobs):
    """A loss with a hyperparameter of its own."""

    def loss(self, output: Tensor, target: Tensor, own: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return F.cross_entropy(output, target) + own["penalty"] * output.square().mean()

    def val_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)


def test_a_name_that_is_not_the_optimizers_belongs_to_the_loss() -> None:
    problem = built(["hyperparameters.penalty={init: 0, step: 0.1}"], task=Smoothing()).problem
    assert problem.loss_hyperparameters == ("penalty",)
    (line,) = faults("hyperparameters.penalty={init: 0, step: 0.1}")
    assert line == (
        "hyperparameters.penalty: unknown hyperparameter; expected lr, momentum, weight_decay (of sgd), "
        "or a task whose loss takes a third argument or that has an augment"
    )


# --- models and tasks ---


def weights(problem: Any, outer_step: int) -> Tensor:
    return problem.network(outer_step).initial_weights


def ignorant(seed: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))  # ignores its seed


def seeded_weights(make: Callable[[], Any], **options: Any) -> None:
    """Holds `build` to weights that the seed and the outer step decide, and nothing else."""
    base = {**BASE, **options}
    first, again = (built(base=base, model=make()).problem for _ in range(2))
    torch.rand(3)  # the global generator must not matter
    assert torch.equal(weights(first, 0), weights(again, 0))
    assert not torch.equal(weights(first, 0), weights(first, 1))
    assert not torch.equal(weights(first, 0), weights(built(["seed=1"], base, model=make()).problem, 0))


def test_a_function_that_ignores_its_seed_gets_weights_that_the_seed_decides() -> None:
    seeded_weights(lambda: ignorant)


def test_random_numbers_of_python_and_numpy_are_the_seeds_too() -> None:
    def drawn(seed: int) -> nn.Module:
        module = ignorant(seed)
        nn.init.constant_(module[1].bias, random.random() + numpy.random.random())  # type: ignore[index, union-attr]
        return module

    seeded_weights(lambda: drawn)


def test_redraw_gives_a_module_weights_that_the_seed_decides() -> None:
    seeded_weights(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), model={"init": "redraw"})


def test_a_module_keeps_its_weights_and_the_build_says_so() -> None:
    module = ignorant(0)
    of_module = built(model=module)
    assert of_module.remarks[:-1] == (SAME_START,)  # the last is the witness's
    for outer_step in (0, 1):
        assert torch.equal(weights(of_module.problem, outer_step), nn.utils.parameters_to_vector(module.parameters()))
    assert built(model=lambda seed: module).remarks[:-1] == (SAME_START,)
    assert built(model=ignorant).remarks[:-1] == ()


class Half(nn.Module):
    """A part that is frozen, one that draws weights, and a parameter that no part draws."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(36, 4).requires_grad_(False)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.head.bias.requires_grad_(False).fill_(5.0)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.backbone(x.flatten(1))[:, None] * self.scale
        return self.head(self.attention(hidden, hidden, hidden, need_weights=False)[0][:, 0])


def test_redraw_leaves_frozen_parts_alone_and_says_what_it_could_not_draw() -> None:
    module = Half()
    found = built(base={**BASE, "model": {"init": "redraw"}}, model=module)
    assert found.remarks[:-1] == ("model.init=redraw: no reset_parameters draws scale: the values stay",)
    network = dict(found.problem.build_model(3).named_parameters())
    for name, parameter in module.named_parameters():
        kept = (
            name == "scale"
            or not parameter.requires_grad
            or name.endswith("proj_bias")
            or name == "attention.out_proj.bias"
        )
        assert torch.equal(network[name], parameter) == kept, name
        assert network[name].requires_grad == parameter.requires_grad


def test_redraw_of_a_module_that_cannot_is_refused() -> None:
    (line,) = faults(base={**BASE, "model": {"init": "redraw"}}, model=Checkpointed())
    assert line == (
        "model.init: no part of Checkpointed has a reset_parameters that draws weights; "
        "expected keep, or a function of the seed that builds the network"
    )


def test_a_model_without_a_name_is_the_tasks_own() -> None:
    assert isinstance(built(base={**BASE, "model": {"init": "keep"}}).problem.build_model(0)[1], nn.BatchNorm2d)  # type: ignore[index]
    (line,) = faults("model.init=redarw")
    assert line == "model.init: 'redarw' is not valid; expected one of keep, redraw; did you mean redraw?"


def test_a_given_task_takes_the_place_of_the_configs_even_where_that_is_wrong() -> None:
    task = Blobs()
    assert built(["task.name=nothing"], task=task).problem.task is task
    without = {key: value for key, value in BASE.items() if key != "task"}
    assert built(base=without, task=task).problem.task is task


def test_a_task_that_lacks_members_is_told_all_of_them() -> None:
    lines = faults(task=object())
    assert [line.partition(":")[0] for line in lines] == [
        *[f"task.{name}" for name in ("train_batches", "val_batches", "test_batches", "steps_per_epoch", "loss")]
    ]


def test_a_task_without_a_network_needs_a_model() -> None:
    class Bare(Blobs):
        build_model = None  # pyright: ignore[reportAssignmentType]

    (line,) = faults(task=Bare())
    assert line == "model: is missing, and this task builds none; expected a model, such as {name: lenet}"


# --- methods ---


class Checkpointed(nn.Module):
    """Activation checkpointing (saved-tensor hooks) is what `torch.func` cannot trace, and double backward can."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(36, 3) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        output = checkpoint(lambda x: x.flatten(1) @ self.weight, x, use_reentrant=False)
        assert isinstance(output, Tensor)
        return output


def test_the_method_is_one_that_works_on_the_network() -> None:
    chosen = built(model=lambda seed: Checkpointed())
    assert chosen.problem.tangents.method == "double_backward"
    assert [remark.partition(":")[0] for remark in chosen.remarks[1:]] == ["checked against plain PyTorch"]
    (line,) = faults("tangents.method=jvp", model=lambda seed: Checkpointed())
    assert line.startswith("tangents.method: jvp cannot differentiate activation checkpointing")
    assert line.endswith("expected tangents.method=double_backward, which can")


def test_a_run_is_tried_on_as_many_threads_as_it_will_have(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Blobs):
        threads: ClassVar[set[int]] = set()

        def loss(self, output: Tensor, target: Tensor) -> Any:
            self.threads.add(torch.get_num_threads())
            return super().loss(output, target)

    monkeypatch.delenv("OMP_NUM_THREADS")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        built(["estimator=auto"], task=Counted())
        assert (Counted.threads, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)


# --- faults ---


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["tangents.dtype=float64"], "tangents.dtype: float64 differs from dtype float32; expected float32, or leave"),
        (
            ["estimator=reverse", "tangents.clip_hvp=1.0"],
            "tangents.clip_hvp: 1 has no effect with estimator reverse",
        ),
        (["mesh.data=2"], "mesh: data 2 does not divide 1 rank; expected a launch with a multiple of 2"),
        (["inner.epochs=0.1"], "hyperparameters.lr.buckets: 2 is more buckets than inner steps: the shortest horizon"),
        (["inner.epochs=[2, 0.1, 2]"], "hyperparameters.lr.buckets: 2 is more buckets than inner steps: the shortest "),
        (["hyperparameters.lr.max=0.05"], "hyperparameters.lr.init: 0.1 is out of range; expected a number of at most"),
    ],
)
def test_options_that_do_not_go_together(overrides: list[str], line: str) -> None:
    (told,) = faults(*overrides)
    assert told.startswith(line)


def test_a_key_that_is_gone_is_a_remark() -> None:
    remark, _ = built(["tangents.dtype=float32"]).remarks
    assert remark == "tangents.dtype is gone: tangents have the dtype of the weights; remove the key"


def test_the_environment_variable_of_wandb_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "of")
    assert faults("mesh.tangent=2") == [
        "mesh.tangent: 2 does not fit 1 rank; expected auto or 1, or a launch with 2 ranks",
        "WANDB_MODE: 'of' is not a mode; expected online, offline or disabled",
    ]
