"""Small runs of everything that a person can start, on GPUs that are not there.

Each scenario is one inner run on a tiny network; it gives what was seen before its second step (`first`), in each later
step (`steps`) and after the last one (`end`).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pretended_gpus import Seen, Watch, pretended_gpus
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

import fds_dist
from fds_dist.build import build, estimators
from fds_dist.commands.inputs import draft_of
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.commands.retrain.trainer import retrain
from fds_dist.distributed import groups, mesh
from fds_dist.distributed.environment import LaunchEnvironment, read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.inner.dry_run import dry_run
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.models import build_model, handed_in
from fds_dist.schedule.schedule import Schedule
from fds_dist.tasks.augmentation import Augmentation
from fds_dist.tasks.images import Normalize
from fds_dist.tasks.in_memory import TensorTask
from fds_dist.tasks.sampled import SampledTask
from fds_dist.tasks.sources import StreamSource
from fds_dist.tasks.text import token_cross_entropy

STEPS = 4
"""Of a scenario's run: two epochs, and three buckets."""

BATCH = 8
IMAGES, LABELS = torch.randn(3 * BATCH, 3, 8, 8), torch.randint(10, (3 * BATCH,))
TOKENS = torch.randint(256, (3 * BATCH, 9), dtype=torch.uint8)
TRAIN, VAL = slice(2 * BATCH), slice(2 * BATCH, None)


@dataclass
class Record:
    """What a scenario saw."""

    first: Seen = field(default_factory=Seen)
    steps: list[Seen] = field(default_factory=list)
    end: Seen = field(default_factory=Seen)


class ConvNet(nn.Module):
    """Convolution, batch-norm, dropout and pooling: the operators of large networks that a GPU has kernels of its own
    for."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.bn(self.conv(x)).relu()).mean((2, 3)))


def conv_net(seed: int) -> nn.Module:
    return ConvNet()


def mlp(seed: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 10))


def built_in(name: str, shape: tuple[int, ...], classes: int = 10, **options: Any) -> Callable[[int], nn.Module]:
    return lambda seed: build_model(name, options, input_shape=shape, classes=classes, seed=seed)


def images(**options: Any) -> TensorTask:
    val = {"val_inputs": IMAGES[VAL], "val_targets": LABELS[VAL]}
    task = TensorTask(IMAGES[TRAIN], LABELS[TRAIN], batch_size=BATCH, val_batch_size=BATCH // 2, **val, **options)
    task.classes = 10  # fake labels tell nothing
    return task


def augmented() -> TensorTask:
    changes = {"prepare": Normalize((0.5,) * 3, (0.2,) * 3), "augment": Augmentation(2, True, 2)}
    task = TensorTask((IMAGES * 50).byte(), LABELS, batch_size=BATCH, val_fraction=1 / 3, **changes)
    task.classes = 10
    return task


def stream() -> SampledTask:
    samples: Any = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    task = SampledTask(StreamSource(samples, 0), batch_size=BATCH, val_fraction=1 / 3)
    task.input_shape, task.classes = (3, 8, 8), 10
    return task


def tokens() -> TensorTask:
    task = TensorTask(TOKENS[:, :8], TOKENS[:, 1:], batch_size=BATCH, val_fraction=1 / 3, loss=token_cross_entropy)
    task.classes = 256
    return task


def regression() -> TensorTask:
    flat = IMAGES.flatten(1)
    return TensorTask(flat[:, :20], flat[:, 20:22].clone(), batch_size=BATCH, val_fraction=1 / 3, loss=F.mse_loss)


def penalized(output: Tensor, target: Tensor, h: Mapping[str, Tensor]) -> Tensor:
    return F.cross_entropy(output, target) + h["strength"] * output.square().mean()


class PlainTask:
    """A task that gives its batches on the CPU."""

    steps_per_epoch = 2

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(IMAGES[:BATCH], LABELS[:BATCH]), (IMAGES[BATCH : 2 * BATCH], LABELS[BATCH : 2 * BATCH])])

    def val_batches(self, outer_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(IMAGES[VAL], LABELS[VAL])])

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(())

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)


class OwnTask(PlainTask):
    """One that augments its inputs within the step."""

    def augment(self, inputs: Tensor, generator: torch.Generator, h: Mapping[str, Tensor]) -> Tensor:
        return inputs + h["noise"] * torch.randn(inputs.shape, generator=generator, device=inputs.device)


class Clumsy(PlainTask):
    """A task that makes the host wait in each step, in every way that there is."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        scale = torch.tensor([1.0, 2.0], device=output.device)[0]
        loss = F.cross_entropy(output, target) * scale + output[[0, 1]].sum()
        if float(loss.detach()) < 0 or output.detach().sum().cpu() < 0:
            return loss
        return loss


BASE: dict[str, Any] = {
    "inner": {"optimizer": "sgd", "steps": STEPS},
    "hyperparameters": {"lr": {"init": 0.05, "buckets": 3, "step": 0.05}, "momentum": {"init": 0.5, "step": 0.1}},
    "outer": {"optimizer": "sign", "steps": 1},
    "device": "cuda",
    "consistency": {"witness": "off"},
}
GROUPS = {"inner": {"groups": {"norm": "bn|bias", "rest": ".*"}}, "hyperparameters": {"lr": {"per_group": True}}}
FREE = ("schedule_free_sgd", "schedule_free_adamw")
ADAM = {
    "lr": {"init": 0.05, "buckets": 3, "step": 0.05},
    "beta1": {"init": 0.9, "step": 0.1},
    "weight_decay": {"init": 1e-3, "step": 1e-3},
}


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    config = json.loads(json.dumps(BASE))

    def put(into: dict[str, Any], part: Mapping[str, Any]) -> None:
        for name, value in part.items():
            if isinstance(value, Mapping) and isinstance(into.get(name), dict):
                put(into[name], value)
            else:
                into[name] = value

    for part in parts:
        put(config, part)
    return config


class Recorder:
    """The `OnStep` that cuts what is seen into steps."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.record = watch, Record()
        self._begun = False

    def __call__(self, state: InnerState, loss: Tensor) -> bool:
        seen = self.watch.take()
        if self._begun:
            self.record.steps.append(seen)
        else:
            self.record.first, self._begun = seen, True
        return True


def untried(problem: Problem, method: str, *_: Any) -> tuple[Problem, tuple[str, ...]]:
    """What the dry run gives for these networks; it takes as long as the four steps."""
    return problem.by("jvp" if method == "auto" else method), ()


def built_after(trial: Any, config: dict[str, Any], environment: LaunchEnvironment, task: Any, model: Any) -> Any:
    with mock.patch.object(estimators, "dry_run", trial):
        return build(draft_of(config, (), None, task), environment, task, model)


def search(watch: Watch, task: Any, model: Any, *parts: Mapping[str, Any], trial: Any = untried) -> Record:
    """One inner run with its estimate, after `trial` as its dry run."""
    environment, recorder = read_environment(), Recorder(watch)
    built = built_after(trial, merged(*parts), environment, task, model)
    with built.ranks(environment) as ranks:
        run = InnerRun(built.problem, built.problem.space.initial(), 0, STEPS, ranks, recorder)
        watch.take()
        built.estimator(run)
    recorder.record.end = watch.take()
    return recorder.record


def by(method: str, **options: Any) -> dict[str, Any]:
    return {"tangents": {"method": method, **options}}


def on(optimizer: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"inner": {"optimizer": optimizer}, "hyperparameters": hyperparameters}


def searches() -> Iterator[tuple[str, Callable[[Watch], Record]]]:
    """Inner runs on one GPU."""

    def named(name: str, task: Callable[[], Any], model: Any, *parts: Mapping[str, Any], trial: Any = untried) -> Any:
        return name, lambda watch: search(watch, task(), model, *parts, trial=trial)

    tried = partial(named, trial=dry_run)
    for method in ("jvp", "double_backward", "difference"):
        yield tried(f"forward {method}", images, conv_net, by(method))
    yield named("slow jvp, chunks of 2", images, conv_net, by("jvp", chunk_size=2))
    yield named("pruned", images, conv_net, by("jvp", prune={"ratio": 0.5}, clip_hvp=1.0))
    yield named("groups, clipped", images, conv_net, GROUPS, {"inner": {"nesterov": True, "clip_norm": 1.0}})
    yield tried("accumulate, ema", images, conv_net, {"inner": {"accumulate": 2, "ema": 0.9}})
    yield tried("bf16", images, conv_net, {"inner": {"precision": "bf16"}})
    yield tried("slow running batch-norm", images, conv_net, {"outer": {"val_batch_norm": "running"}})
    yield tried("slow float64", regression, lambda seed: nn.Linear(20, 2), {"dtype": "float64"})
    own = {"hyperparameters": {"strength": {"init": 0.1, "step": 0.1, "buckets": 2}}}
    yield tried("hyperparameter of the loss", lambda: images(loss=penalized, val_loss=F.cross_entropy), mlp, own)
    for estimator in ("forward", "reverse"):
        lines = {"estimator": estimator, "hyperparameters": {"lr": {"shape": "linear"}}}
        yield named(f"{'' if estimator == 'forward' else 'slow '}linear {estimator}", images, conv_net, lines)
    noise = {"hyperparameters": {"noise": {"init": 0.1, "step": 0.1}}}
    yield tried("own task with augment", OwnTask, mlp, noise)
    yield named("augmented images", augmented, conv_net)
    yield tried("stream", stream, conv_net)
    yield tried("slow transformer", tokens, built_in("transformer", (8,), 256, layers=1, width=16, dropout=0.1))
    yield named("slow greedy", images, conv_net, {"estimator": "greedy"})
    yield tried("greedy, discount 0.9", images, conv_net, {"estimator": "greedy", "greedy": {"discount": 0.9}})
    yield tried("reverse", images, conv_net, {"estimator": "reverse"})
    yield named("slow reverse, groups", images, conv_net, {"estimator": "reverse"}, GROUPS)
    yield named("random directions", images, mlp, {"estimator": "random_directions", "random_directions": {"count": 2}})
    for name in ("adam", "nadam", "adamw", "rmsprop", "adagrad", "lion", "lamb", "muon", *FREE):
        learned = ADAM if name in ("adam", "adamw", "nadam", "lamb", FREE[1]) else {"lr": ADAM["lr"]}
        slow = "" if name == "adam" else "slow "
        yield slow + name, partial(with_optimizer, optimizer=name, hyperparameters=learned)


def with_optimizer(watch: Watch, optimizer: str, hyperparameters: Mapping[str, Any]) -> Record:
    with mock.patch.dict(BASE, {"hyperparameters": hyperparameters}):
        return search(watch, images(), mlp, {"inner": {"optimizer": optimizer}})


def on_mesh(watch: Watch, shape: MeshShape, *parts: Mapping[str, Any]) -> Record:
    """Rank 0 of a mesh, whose collectives PyTorch's fake process group answers."""
    size = shape.replica * shape.tangent * shape.data
    launched = {"RANK": "0", "WORLD_SIZE": str(size), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": str(size)}
    launched |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    begin, new_group = dist.init_process_group, dist.new_group

    def begin_fake(backend: str, *args: Any, rank: int, world_size: int, **options: Any) -> None:
        assert "nccl" in backend
        begin("fake", store=FakeStore(), rank=rank, world_size=world_size)

    def new_fake_group(ranks: list[int], *args: Any, **options: Any) -> Any:
        return new_group(ranks, backend="fake")

    axis_group = Ranks._axis_group

    def group_of(ranks: Ranks, *arguments: Any) -> Any:
        with _disable_current_modes():  # the ranks of a group are values
            return axis_group(ranks, *arguments)

    sizes = {"mesh": {"replica": shape.replica, "tangent": shape.tangent, "data": shape.data}}
    with contextlib.ExitStack() as stack:
        for patch in (
            mock.patch.dict(os.environ, launched),
            mock.patch.object(torch.cuda, "device_count", lambda: size),
            mock.patch.object(mesh, "company", lambda environment: contextlib.nullcontext()),
            mock.patch.object(mesh, "shared_store", lambda environment: None),
            mock.patch.object(groups, "shared_store", lambda environment: None),
            mock.patch.object(groups, "name_interface", lambda environment, store: None),
            mock.patch.object(dist, "init_process_group", begin_fake),
            mock.patch.object(dist, "new_group", new_fake_group),
            mock.patch.object(Ranks, "_axis_group", group_of),
            mock.patch.object(Ranks, "broadcast_object", lambda ranks, value: value),
            mock.patch.object(Ranks, "gather_objects", lambda ranks, value: [value] * ranks.world_size),
        ):
            stack.enter_context(patch)
        return search(watch, images(), conv_net, sizes, *parts)


def meshes() -> Iterator[tuple[str, Callable[[Watch], Record]]]:
    """Inner runs on several GPUs."""
    for method in ("jvp", "double_backward"):
        slow = "" if method == "jvp" else "slow "
        yield f"slow mesh 1x2x1 {method}", lambda watch, m=method: on_mesh(watch, MeshShape(1, 2, 1), by(m))
        yield f"{slow}mesh 1x1x3 {method}", lambda watch, m=method: on_mesh(watch, MeshShape(1, 1, 3), by(m))
    part = {"mesh": {"batch_norm": "part"}}
    yield "mesh 2x2x2", lambda watch: on_mesh(watch, MeshShape(2, 2, 2), part)
    for estimator in ("reverse", "greedy"):
        chosen = {"estimator": estimator}
        slow = "" if estimator == "reverse" else "slow "
        yield f"{slow}mesh 1x1x2 {estimator}", lambda watch, chosen=chosen: on_mesh(watch, MeshShape(1, 1, 2), chosen)
    yield "slow mesh 1x1x2 groups", lambda watch: on_mesh(watch, MeshShape(1, 1, 2), GROUPS)


def retraining(watch: Watch, task: Callable[[], Any] = images, **settings: Any) -> Record:
    """A retraining on one GPU, all of it as one stretch."""
    schedule = Schedule(4, {"lr": (0.1, 0.2)}, {"momentum": 0.9, "weight_decay": 0.0}, {"name": "sgd"})
    ranks = Ranks(LaunchEnvironment(), MeshShape(1, 1, 1), torch.device("cuda", 0))
    silent = mock.Mock(return_value=None)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("fds_dist.commands.retrain.seed_run.write_weights", silent),
        mock.patch("fds_dist.commands.retrain.ddp.write_state", silent),
        ranks,
    ):
        watch.take()
        retrain(lambda seed: task(), conv_net, schedule, RetrainSettings(steps=4, **settings), ranks, Path(folder))
    return Record(end=watch.take())


def command(name: str) -> Callable[[Watch], Record]:
    """A whole command."""

    def run(watch: Watch) -> Record:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            config = merged({"output_dir": folder})
            if name == "optimize":
                fds_dist.optimize(config, task=images(), model=conv_net, progress=False)
            elif name == "verify":
                fds_dist.verify(config, task=images(), model=mlp, steps=3)
            else:
                fds_dist.check(config, task=images(), model=mlp, world_size=2)
        return Record(end=watch.take())

    return run


def kernels_of(model: str, way: str, count: int) -> Callable[[Watch], Record]:
    """Inner steps of a network of the literature, with `count` live tangents, at batch 64.

    Args:
        way: a method, or `trace`, whose first two steps are compared with eager ones.
    """
    shape = (3, 32, 32) if model.startswith("wrn") else (1, 28, 28)
    options: dict[str, Any] = {"hidden": [64, 64]} if model == "mlp" else {}
    method = {"plain": "double_backward", "trace": "jvp"}.get(way, way)
    compiled = {"compile": "trace", "chunk_size": count} if way == "trace" else {"compile": "off"}

    def run(watch: Watch) -> Record:
        task = TensorTask(torch.randn(128, *shape), torch.randint(10, (128,)), batch_size=64, val_fraction=0.5)
        task.classes = 10
        learned = {"lr": {"init": 0.05, "step": 0.05}, "momentum": 0.9, "weight_decay": 1e-4}
        with mock.patch.dict(BASE, {"hyperparameters": learned}):
            config, environment, recorder = merged(by(method, **compiled)), read_environment(), Recorder(watch)
        problem = built_after(untried, config, environment, task, built_in(model, shape, **options)).problem
        problem = problem.by("plain") if way == "plain" else problem
        inner = InnerRun(problem, problem.space.initial(), 0, 4 if way == "trace" else 2, on_step=recorder)
        run_horizon(inner, [0] * count)  # tangents of one element: their number is what counts
        return recorder.record

    return run


def copied(watch: Watch) -> Record:
    """A copy of a network, whose parameters and buffers are in the mode of the first one's."""
    network = conv_net(0).to("cuda")
    next(network.parameters()).requires_grad_(False)
    both = [module.state_dict(keep_vars=True).values() for module in (network, copy.deepcopy(network))]
    for first, second in zip(*both, strict=True):
        assert second is not first and second.fake_mode is first.fake_mode
        assert isinstance(second, nn.Parameter) == isinstance(first, nn.Parameter)
        assert (second.device, second.requires_grad) == (first.device, first.requires_grad)
    return Record(end=watch.take())


SEARCHES: dict[str, Callable[[Watch], Record]] = {**dict(searches()), **dict(meshes())}
RETRAININGS: dict[str, Callable[[Watch], Record]] = {
    "slow retrain": retraining,
    "retrain, augmented bf16": lambda watch: retraining(watch, augmented, mixed_precision="bf16", clip_norm=1.0),
    "retrain, stream": lambda watch: retraining(watch, stream, accumulate=2),
}
COMMANDS = {"optimize": command("optimize"), "slow check": command("check"), "slow verify": command("verify")}
MOST = {
    ("mlp", "jvp", 9): 134,
    ("mlp", "double_backward", 1): 98,
    ("mlp", "plain", 0): 28,
    ("lenet", "jvp", 9): 195,
    ("lenet", "double_backward", 1): 149,
    ("lenet", "plain", 0): 41,
    ("mlp", "trace", 4): 114,
    ("wrn-16-1", "jvp", 1): 1612,
    ("wrn-16-1", "jvp", 9): 1728,
    ("wrn-16-1", "double_backward", 1): 1787,
}
"""(network, method, live tangents) → kernels of a step at most."""

LARGE = {"wrn-16-1": "slow "}
KERNELS = {
    f"{LARGE.get(model, '')}{model} by {method}, {count} tangents": (kernels_of(model, method, count), most)
    for (model, method, count), most in MOST.items()
}
SCENARIOS = {
    **SEARCHES,
    **RETRAININGS,
    **COMMANDS,
    **{name: scenario for name, (scenario, _) in KERNELS.items()},
    "clumsy": lambda watch: search(watch, Clumsy(), mlp),
    "copied": copied,
}
"""All of them; the names of those that take longer begin with `slow`."""


def run_all(pattern: str) -> None:
    """Runs the scenarios whose names match, and prints one line of JSON for each."""
    for name, scenario in SCENARIOS.items():
        if not re.search(pattern, name):
            continue
        # Fake parameters are of a class of their own, which no network may have.
        accepted = mock.patch.object(handed_in, "module_faults", lambda module: iter(()))
        with pretended_gpus() as watch, accepted:
            try:
                told: dict[str, Any] = {name_: _plain(part) for name_, part in vars(scenario(watch)).items()}
            except Exception as error:
                told = {"error": f"{type(error).__name__}: {error} in {_places(error)}"}
        print(json.dumps({"name": name, **told}), flush=True)


def _places(error: Exception) -> str:
    """The lines of the package and of the tests that an exception came through."""
    frames = traceback.extract_tb(error.__traceback__)
    return ", ".join(f"{frame.filename}:{frame.lineno}" for frame in frames if "site-packages" not in frame.filename)


def _plain(part: Any) -> Any:
    if isinstance(part, list):
        return [_plain(each) for each in part]
    return {name: {_key(place): n for place, n in counter.items() if n} for name, counter in vars(part).items()}


def _key(place: Any) -> str:
    return place if isinstance(place, str) else " at ".join(place)
