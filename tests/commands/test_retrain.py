"""Retraining in one process: the schedule reaches the optimizer, what is kept, what is refused, what is reported."""

from __future__ import annotations

import contextlib
import io
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from problems import CPU, ONE_RANK, Ramp, TensorTask, conv_bn, image_task, images, make_problem, mlp, smoothed_task
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from fds_dist.commands.retrain.records import Block, EpochRecord, RetrainResult, SeedStart, Summary
from fds_dist.commands.retrain.reporting import ConsoleReporter, Reporter
from fds_dist.commands.retrain.settings import RetrainSettings, read_settings
from fds_dist.commands.retrain.trainer import KEY, retrain
from fds_dist.common.faults import UserError
from fds_dist.common.flat import FlatLayout, trainable_parameters
from fds_dist.config import Config
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.problem import Problem
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.models import build_model
from fds_dist.schedule.schedule import Schedule
from fds_dist.tangents.optimizers import SGD, Adam
from fds_dist.tasks.base import Task
from fds_dist.tasks.digits import digits

SCHEDULE = Schedule(
    15,
    {"lr": (0.3, 0.1, 0.2), "momentum": (0.5, 0.9), "weight_decay": (1e-3, 0.0, 1e-2)},
    optimizer={"name": "sgd", "nesterov": False},
)


def in_float64(epochs: float, seeds: int = 1, restart: bool = False) -> RetrainSettings:
    return RetrainSettings(epochs=epochs, dtype="float64", seeds=seeds, restart=restart)


IN_FLOAT64 = in_float64(3)


class Listener(Reporter):
    """Keeps what it is told; `on_block` is called after each step of a horizon of at most 100."""

    def __init__(self, on_block: Callable[[Block], None] = lambda block: None) -> None:
        self.on_block = on_block
        self.starts: list[SeedStart] = []
        self.epochs: list[EpochRecord] = []
        self.notes: list[str] = []
        self.summaries: list[Summary | None] = []

    def start(self, seed: SeedStart) -> None:
        self.starts.append(seed)

    def block(self, block: Block) -> None:
        self.on_block(block)

    def epoch(self, record: EpochRecord) -> None:
        self.epochs.append(record)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def finish(self, summary: Summary | None) -> None:
        self.summaries.append(summary)


class Interruption(BaseException):
    """Ends a retraining from within a reporter, as a signal would."""


def interrupt_after(step: int) -> Listener:
    def stop(block: Block) -> None:
        if block.step == step:
            raise Interruption

    return Listener(stop)


def run(
    task: Task,
    folder: Path,
    schedule: Schedule = SCHEDULE,
    settings: RetrainSettings = IN_FLOAT64,
    listener: Listener | None = None,
    model: Callable[[int], nn.Module] | None = None,
) -> list[RetrainResult]:
    builder = model or task.build_model  # type: ignore[attr-defined]
    return retrain(lambda seed: task, builder, schedule, settings, ONE_RANK, folder, [listener or Listener()])


def with_dropout() -> nn.Module:
    return nn.Sequential(mlp(), nn.Dropout(0.3), nn.Linear(4, 4))


# The schedule reaches the optimizer


def inner_path(problem: Problem, values: Sequence[float], horizon: int) -> list[Tensor]:
    """The inner run's weights [D] after each step."""
    path: list[Tensor] = []

    def keep(state: InnerState, loss: Tensor) -> bool:
        path.append(state.weights)
        return True

    # The key stands for the outer step, so that dropout draws the same masks; the tasks here ignore it.
    run_horizon(InnerRun(problem, values, cast(int, KEY), horizon, on_step=keep), [])
    return path


def retrained_path(task: Task, schedule: Schedule, settings: RetrainSettings, folder: Path) -> list[Tensor]:
    """The retrained network's weights [D] after each step."""
    modules: list[nn.Module] = []
    path: list[Tensor] = []

    def build(seed: int) -> nn.Module:
        modules.append(task.build_model(seed))  # type: ignore[attr-defined]
        return modules[-1]

    def keep(block: Block) -> None:
        parameters = trainable_parameters(modules[-1])
        path.append(FlatLayout.of(parameters).flatten(parameters, torch.float64, CPU))

    run(task, folder, schedule, settings, Listener(keep), build)
    return path


PER_GROUP = {"lr.norm": (0.3, 0.1), "lr.rest": (0.1,), "momentum": (0.9,), "weight_decay.norm": (0.0, 0.01)}
PER_GROUP["weight_decay.rest"] = (0.02,)
PER_GROUP_ADAMW = {
    "lr": (0.01, 0.1),
    "beta1.bias": (0.9, 0.5),
    "beta1.weight": (0.8,),
    "beta2.bias": (0.99,),
    "beta2.weight": (0.9, 0.95, 0.99),
    "eps.bias": (1e-3,),
    "eps.weight": (1e-2,),
}


@pytest.mark.parametrize(
    ("optimizer", "buckets", "fixed", "clip", "task", "groups"),
    [
        (SGD(), SCHEDULE.values, {}, None, image_task(conv_bn), {}),
        (SGD(nesterov=True), SCHEDULE.values, {}, 0.02, image_task(with_dropout), {}),
        (SGD(), {"lr": (0.3, 0.1), "momentum": (0.0, 0.9, 0.0)}, {"weight_decay": 0.01}, None, image_task(mlp), {}),
        (SGD(), {"lr": (0.3,), "smoothing": (0.0, 0.4, 0.1)}, {}, None, smoothed_task(mlp), {}),
        (Adam(), {"lr": (0.01, 0.1), "beta1": (0.9, 0.5), "weight_decay": (0.1, 0.0)}, {}, None, image_task(mlp), {}),
        (Adam(decoupled=True), {"lr": (0.01, 0.1), "beta2": (0.9, 0.99)}, {"eps": 1e-3}, 0.02, image_task(mlp), {}),
        (SGD(), {**PER_GROUP, "smoothing": (0.1, 0.3)}, {}, None, smoothed_task(conv_bn), {"norm": "[14]", "rest": ""}),
        (Adam(decoupled=True), PER_GROUP_ADAMW, {}, None, image_task(conv_bn), {"bias": "bias", "weight": "weight"}),
    ],
    ids=["sgd", "nesterov-clip-dropout", "momentum-zero", "loss", "adam", "adamw-clip", "groups", "groups-adamw"],
)
def test_weights_are_those_of_the_inner_run_after_every_step(
    tmp_path: Path,
    optimizer: SGD | Adam,
    buckets: Mapping[str, tuple[float, ...]],
    fixed: dict[str, float],
    clip: float | None,
    task: TensorTask,
    groups: dict[str, str],
) -> None:
    problem = make_problem(task, buckets, fixed, optimizer=optimizer, clip_gradient=clip, groups=groups)
    values = problem.space.pack(buckets)
    learned = problem.space.schedule(values, 15, problem.optimizer_info)
    settings = RetrainSettings(epochs=3, dtype="float64", clip_gradient=clip)
    expected = inner_path(problem, values, 15)
    found = retrained_path(task, learned, settings, tmp_path)
    assert len(found) == len(expected) == 15
    distances = [((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]
    # The same arithmetic in float64, but for a fused multiply-add here and there: found equal, or 2e-16 apart, which 15
    # steps of other networks and processors may amplify. Another 1 % in the last bucket moves the weights by 7e-5.
    assert max(distances) < 1e-12


def ramp_task() -> TensorTask:
    data = torch.ones(20, 1, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    return TensorTask(Ramp, data, data, lambda output, target: output.mean(), batch_size=4)


def test_a_stretched_schedule_reads_the_right_bucket_at_each_step(tmp_path: Path) -> None:
    learned = Schedule(6, {"lr": (1.0, 2.0, 4.0)}, optimizer={"name": "sgd"})
    path = [0.0, *(w.item() for w in retrained_path(ramp_task(), learned, in_float64(2), tmp_path))]
    steps = [before - after for before, after in pairwise(path)]
    # Bucket ⌊3t/10⌋ for t = 0 … 9; powers of two, so that the differences are exact.
    assert steps == [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0]


def test_epochs_may_be_a_part_and_history_tells_the_values_at_their_end(tmp_path: Path) -> None:
    (result,) = run(image_task(mlp), tmp_path, settings=in_float64(1.4))  # 7 of 5 + 5 steps
    assert [record.step for record in result.epochs] == [5, 7]
    first, last = map(json.loads, (tmp_path / "0" / "history.jsonl").read_text().splitlines())
    assert first["hyperparameters"] == {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}  # step 4 of 7
    assert last["hyperparameters"] == {"lr": 0.2, "momentum": 0.9, "weight_decay": 1e-2}  # step 6 of 7
    assert last["test_loss"] == result.final.test_loss and last["epoch"] == 1 and last["seconds"] > 0


def test_gradient_norm_is_clipped(tmp_path: Path) -> None:
    learned = Schedule(5, {"lr": (1.0,)}, optimizer={"name": "sgd"})
    settings = RetrainSettings(epochs=1, dtype="float64", clip_norm=0.25)
    path = [0.0, *(w.item() for w in retrained_path(ramp_task(), learned, settings, tmp_path))]
    # The gradient is 1; PyTorch divides by norm + 1e-6, hence the tolerance.
    assert [a - b for a, b in pairwise(path)] == pytest.approx([0.25] * 5, rel=2e-6)


@pytest.mark.parametrize(
    ("learned", "words"),
    [
        (replace(SCHEDULE, values={"lr": (0.0, 0.0), "momentum": (0.0,)}), "lr: is 0 at every step"),
        (replace(SCHEDULE, values={"momentum": (0.9,)}, fixed={"lr": 0.0}), "lr: is 0 at every step"),
        (replace(SCHEDULE, values={"lr": (0.1, math.nan)}), "lr: nan is not finite"),
        (replace(SCHEDULE, fixed={"momentum": math.inf}, values={"lr": (0.1,)}), "momentum: inf is not finite"),
        (replace(SCHEDULE, optimizer={"name": "adm"}), "did you mean adam?"),
        (replace(SCHEDULE, optimizer={}), "optimizer.name: is missing"),
    ],
)
def test_a_schedule_that_cannot_train_is_refused(tmp_path: Path, learned: Schedule, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("?", r"\?")):
        run(image_task(mlp), tmp_path, learned)
    assert not list(tmp_path.iterdir())


# Data and testing


class OwnTask:
    """Batches of the caller's choice; the attributes are set per test."""

    loss = staticmethod(F.cross_entropy)
    steps_per_epoch = 2

    def __init__(self, test: Sequence[tuple[Tensor, Tensor]] = (), val: Sequence[tuple[Tensor, Tensor]] = ()) -> None:
        self.test, self.val = test, val
        self.asked: list[Any] = []

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append((outer_step, epoch))
        return iter([images(6, "train", part) for part in range(2)])

    def val_batches(self, outer_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.val)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.test)

    def build_model(self, seed: int) -> nn.Module:
        return image_task(mlp).build_model(seed)


class OnAllData(OwnTask):
    retrain_steps_per_epoch = 3

    def retrain_batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append(epoch)
        return iter([images(6, "train", part) for part in range(3)])


def test_trains_on_all_data_where_the_task_has_them(tmp_path: Path) -> None:
    task, listener = OnAllData(test=[images(4, "test")]), Listener()
    (result,) = run(task, tmp_path, settings=in_float64(2), listener=listener)
    assert task.asked == [0, 1] and result.final.step == 6
    assert listener.notes == [
        "no validation data is held out: the last weights are kept (hold_out=true chooses the best)"
    ]


def test_says_where_it_trains_and_tests_on_second_choices(tmp_path: Path) -> None:
    task, listener = OwnTask(val=[images(4, "val")]), Listener()
    (result,) = run(task, tmp_path, settings=in_float64(2), listener=listener)
    assert task.asked == [(0, 0), (0, 1)] and result.final.step == 4
    assert len(listener.notes) == 2
    assert "without the validation part" in listener.notes[0] and "tested on val_batches(0)" in listener.notes[1]


def test_nothing_to_test_on_and_too_few_batches_are_faults(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither test nor validation"):
        run(OwnTask(), tmp_path)
    task = OnAllData(test=[images(4, "test")])
    task.retrain_steps_per_epoch = 4
    with pytest.raises(UserError, match="retrain_batches gave 3 batches in epoch 0; expected 4"):
        run(task, tmp_path)


def test_test_figures_are_means_over_samples_with_running_statistics(tmp_path: Path) -> None:
    parts = [images(count, "test", count) for count in (5, 3, 1)]
    task = OwnTask(test=parts)
    (result,) = run(task, tmp_path, model=lambda seed: conv_bn())
    network = conv_bn().double()
    network.load_state_dict(load_file(result.folder / "last.safetensors"))
    network.eval()
    inputs, targets = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    output = network(inputs)
    # The same sums over another split into batches: rounding of float64.
    assert result.final.test_loss == pytest.approx(F.cross_entropy(output, targets).item(), rel=1e-12)
    assert result.final.test_accuracy == (output.argmax(-1) == targets).sum().item() / 9


def test_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    # The learning rate blows up in the last epochs, so that the best is not the last.
    learned = replace(SCHEDULE, values={"lr": (0.3, 0.3, 0.3, 300.0, 300.0)})
    task = image_task(mlp)
    (result,) = run(task, tmp_path, learned, in_float64(5))
    assert result.best.epoch < 4
    assert result.best.test_accuracy == max(cast(float, record.test_accuracy) for record in result.epochs)
    network = mlp().double()
    network.load_state_dict(load_file(result.folder / "best.safetensors"))
    inputs, targets = task.val
    # The same function of the same weights; batches and threads are the same too.
    assert result.best.test_loss == pytest.approx(F.cross_entropy(network(inputs), targets).item(), rel=1e-12)


def test_digits_are_learned_by_a_sensible_schedule(tmp_path: Path) -> None:
    learned = Schedule(
        1000, {"lr": (0.1, 0.1, 0.02)}, {"momentum": 0.9, "weight_decay": 1e-4}, {"name": "sgd", "nesterov": True}
    )
    model = partial(build_model, "mlp", {}, input_shape=(1, 8, 8), classes=10)
    settings = RetrainSettings(epochs=6)
    (result,) = retrain(
        lambda seed: digits(seed=seed), lambda seed: model(seed=seed), learned, settings, ONE_RANK, tmp_path
    )
    assert cast(float, result.final.test_accuracy) > 0.95  # 97.5 to 98.9 % over ten seeds; chance is 10 %


def test_bf16_trains_with_weights_in_float32(tmp_path: Path) -> None:
    task = image_task(mlp)
    plain, mixed = (
        run(task, tmp_path / precision, settings=RetrainSettings(epochs=3, mixed_precision=precision))[0]
        for precision in ("none", "bf16")
    )
    assert {tensor.dtype for tensor in load_file(mixed.folder / "last.safetensors").values()} == {torch.float32}
    # bf16 keeps 8 bits, so that losses agree to some percent and not to more: float32 would agree to 1e-6.
    assert mixed.final.train_loss == pytest.approx(plain.final.train_loss, rel=0.1)
    assert abs(mixed.final.train_loss / plain.final.train_loss - 1) > 1e-5


@pytest.mark.gpu
def test_gpu_trains_as_the_cpu_does(tmp_path: Path) -> None:
    task = image_task(conv_bn)
    on_gpu = type(ONE_RANK)(ONE_RANK.environment, ONE_RANK.shape, torch.device("cuda", 0))
    (there,) = retrain(lambda seed: task, task.build_model, SCHEDULE, IN_FLOAT64, on_gpu, tmp_path / "gpu")
    (here,) = run(task, tmp_path / "cpu")
    # float64 on both, sums in another order, 15 steps.
    assert there.final.test_loss == pytest.approx(here.final.test_loss, rel=1e-9)
    mixed = RetrainSettings(epochs=3, mixed_precision="bf16")
    (bf16,) = retrain(lambda seed: task, task.build_model, SCHEDULE, mixed, on_gpu, tmp_path / "bf16")
    assert bf16.final.train_loss == pytest.approx(here.final.train_loss, rel=0.1)  # as on the CPU, see above


# Interruption, resuming, other settings


@pytest.mark.parametrize(
    ("learned", "build"),
    [
        (SCHEDULE, with_dropout),
        (SCHEDULE, conv_bn),
        (replace(SCHEDULE, values={"lr": (0.01, 0.1)}, optimizer={"name": "adamw"}), mlp),
        # No velocity exists yet when the state is saved.
        (replace(SCHEDULE, values={"lr": (0.1,), "momentum": (0.0,)}), mlp),
    ],
    ids=["sgd-dropout", "sgd-batch-norm", "adamw", "no-momentum"],
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path: Path, learned: Schedule, build: Callable[[], nn.Module]
) -> None:
    task, settings = image_task(build), RetrainSettings(epochs=3)
    (whole,) = run(task, tmp_path / "whole", learned, settings)
    cut = interrupt_after(12)  # in the third of three epochs
    with pytest.raises(Interruption):
        run(task, tmp_path / "cut", learned, settings, cut)
    assert cut.summaries == [None]
    listener = Listener()
    (resumed,) = run(task, tmp_path / "cut", learned, settings, listener)
    assert listener.starts[0].first_epoch == 2 and [record.epoch for record in listener.epochs] == [2]
    for file in ("last", "best"):
        expected, found = (load_file(r.folder / f"{file}.safetensors") for r in (whole, resumed))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [replace(record, seconds=0.0) for record in resumed.epochs] == [
        replace(record, seconds=0.0) for record in whole.epochs
    ]
    assert len((resumed.folder / "history.jsonl").read_text().splitlines()) == 3


def test_a_finished_seed_is_not_trained_again(tmp_path: Path) -> None:
    first = run(image_task(mlp), tmp_path)
    listener = Listener()
    again = run(image_task(mlp), tmp_path, settings=in_float64(3, seeds=2), listener=listener)
    assert [record.seed for record in listener.epochs] == [1, 1, 1]
    assert again[0].epochs == first[0].epochs


def test_other_settings_are_refused_until_told_to_begin_anew(tmp_path: Path) -> None:
    task = image_task(mlp)
    run(task, tmp_path)
    other = in_float64(2)
    with pytest.raises(UserError, match=r"with epochs=3\.0, horizon=15; expected .*restart=true"):
        run(task, tmp_path, settings=other)
    with pytest.raises(UserError, match="with another schedule; expected"):
        run(task, tmp_path, replace(SCHEDULE, fixed={"weight_decay": 0.5}))
    (result,) = run(task, tmp_path, settings=in_float64(2, restart=True))
    assert len(result.epochs) == 2
    assert run(task, tmp_path, settings=other)[0].epochs == result.epochs  # which now is what lies there


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    run(image_task(mlp), tmp_path)
    with pytest.raises(UserError, match=r"belongs to another network.*restart=true"):
        run(image_task(conv_bn), tmp_path)


@pytest.mark.parametrize("damage", ["bit", "cut", "pickle"])
def test_a_damaged_state_is_refused(tmp_path: Path, damage: str) -> None:
    task = image_task(mlp)
    run(task, tmp_path)
    state = tmp_path / "0" / "state.safetensors"
    content = bytearray(state.read_bytes())
    if damage == "bit":
        content[-100] ^= 1  # within the tensors
        state.write_bytes(content)
    elif damage == "cut":
        state.write_bytes(content[:-100])
    else:
        torch.save({"weights": torch.zeros(3)}, state)
    with pytest.raises(UserError, match=r"state\.safetensors is damaged"):
        run(task, tmp_path)


def test_files_are_as_readable_as_others_and_no_temporary_one_stays(tmp_path: Path) -> None:
    (result,) = run(image_task(mlp), tmp_path)
    files = {path.name: path.stat().st_mode for path in result.folder.iterdir()}
    assert files.keys() == {"history.jsonl", "last.safetensors", "best.safetensors", "state.safetensors"}
    assert len(set(files.values())) == 1


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.Tanh(), nn.Linear(36, 36))
        network[3].weight = network[1].weight
        return network

    (result,) = run(image_task(tied), tmp_path)
    weights = load_file(result.folder / "last.safetensors")
    assert torch.equal(weights["1.weight"], weights["3.weight"])


# Seeds


def test_seeds_give_their_mean_and_spread(tmp_path: Path) -> None:
    task, listener = image_task(mlp), Listener()
    asked: list[int] = []

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return mlp()

    def make_task(seed: int) -> Task:
        asked.append(seed)
        return task

    settings = RetrainSettings(epochs=2, seed=7, seeds=3)
    results = retrain(make_task, build, SCHEDULE, settings, ONE_RANK, tmp_path, [listener])
    assert asked == [result.seed for result in results] == [7, 8, 9]
    assert len({result.final.test_loss for result in results}) == 3  # the seeds differ
    (summary,) = listener.summaries
    assert summary is not None and summary.final_test_loss is not None and summary.best_test_accuracy is not None
    losses = [result.final.test_loss for result in results]
    best = [max(cast(float, record.test_accuracy) for record in result.epochs) for result in results]
    # The standard library's formulas over the same numbers, and n - 1: rounding alone.
    assert summary.final_test_loss.mean == pytest.approx(sum(losses) / 3, rel=1e-12)
    variance = sum((loss - sum(losses) / 3) ** 2 for loss in losses) / 2
    assert summary.final_test_loss.std == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert summary.best_test_accuracy.mean == pytest.approx(statistics.fmean(best))
    assert (
        json.loads((tmp_path / "summary.json").read_text())["final_test_loss"]["mean"] == summary.final_test_loss.mean
    )


def test_one_seed_has_no_spread_and_callers_random_numbers_stay(tmp_path: Path) -> None:
    listener = Listener()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    run(image_task(with_dropout), tmp_path, listener=listener)
    assert torch.equal(torch.rand(1), expected)
    (summary,) = listener.summaries
    assert summary is not None and summary.final_test_accuracy is not None and summary.final_test_accuracy.std is None


def test_a_diverged_seed_ends_early_and_spoils_no_mean_silently(tmp_path: Path) -> None:
    learned = Schedule(1, {"lr": (1e10,), "weight_decay": (1.0,)}, optimizer={"name": "sgd"})
    listener = Listener()
    (result,) = run(image_task(mlp), tmp_path, learned, RetrainSettings(epochs=4), listener)
    assert len(result.epochs) < 4
    assert any("diverged" in note for note in listener.notes)
    last = json.loads((result.folder / "history.jsonl").read_text().splitlines()[-1])
    assert last["train_loss"] is None  # strict JSON has no NaN
    (summary,) = listener.summaries
    assert summary is not None and summary.final_test_loss is None
    assert len(run(image_task(mlp), tmp_path, learned, RetrainSettings(epochs=4))[0].epochs) == len(result.epochs)


def test_regression_has_no_accuracy_and_its_best_has_the_lowest_loss(tmp_path: Path) -> None:
    listener = Listener()
    learned = Schedule(6, {"lr": (1.0,)}, optimizer={"name": "sgd"})
    (result,) = run(ramp_task(), tmp_path, learned, in_float64(2), listener)
    assert [record.test_accuracy for record in result.epochs] == [None, None]
    assert [record.test_loss for record in result.epochs] == [-5.0, -10.0]  # w after 5 and 10 steps of 1
    assert result.best.epoch == 1
    (summary,) = listener.summaries
    assert summary is not None and summary.best_test_accuracy is None and summary.final_test_loss is not None


# Settings


CONFIG = Config.model_validate(
    {
        "task": {"name": "digits"},
        "hyperparameters": {"lr": {"init": 0.1, "step": 0.1}},
        "inner": {"epochs": [1, 10.5, 3], "clip_gradient": 3.0},
        "seed": 5,
        "dtype": "float64",
    }
)


def test_settings_come_from_the_run_and_the_command_line() -> None:
    settings = read_settings([], CONFIG)
    assert (settings.epochs, settings.clip_gradient, settings.seed, settings.dtype) == (10.5, 3.0, 5, "float64")
    settings = read_settings(
        ["epochs=200", "clip_norm=1e-1", "seeds=3", "mixed_precision=bf16", "dtype=float32"], CONFIG
    )
    assert (settings.epochs, settings.clip_gradient, settings.clip_norm) == (200, None, 0.1)
    assert settings.all_seeds == range(5, 8)


def test_micro_batches_and_bf16_come_from_the_run_s_inner_section() -> None:
    inner = CONFIG.inner.model_copy(update={"accumulate": 4, "precision": "bf16"})
    config = CONFIG.model_copy(update={"inner": inner, "dtype": "float32"})
    settings = read_settings([], config)
    assert (settings.accumulate, settings.mixed_precision) == (4, "bf16")
    assert read_settings(["mixed_precision=none", "accumulate=1"], config).mixed_precision == "none"
    assert read_settings(["dtype=float64"], config).mixed_precision == "none"


def test_micro_batches_train_as_in_the_search(tmp_path: Path) -> None:
    """Batch-norm sees each micro-batch by itself, dropout draws for each."""
    task = image_task(lambda: nn.Sequential(conv_bn(), nn.Dropout(0.3), nn.Linear(4, 4)))
    path = retrained_path(task, SCHEDULE, IN_FLOAT64.model_copy(update={"accumulate": 3}), tmp_path)
    problem = make_problem(task, SCHEDULE.values, accumulate=3)
    search = inner_path(problem, [value for row in SCHEDULE.values.values() for value in row], 15)
    torch.testing.assert_close(path, search, rtol=1e-10, atol=1e-12)  # float64, 15 steps


def test_all_faults_in_settings_are_told_at_once() -> None:
    overrides = ["epoch=3", "engine=dpd", "seeds=0", "epochs=x", "nonsense", "mixed_precision=fp16"]
    with pytest.raises(UserError) as caught:
        read_settings(overrides, CONFIG)
    text = str(caught.value)
    assert len(caught.value.faults) == 6
    assert "epoch: unknown key; did you mean epochs?" in text
    assert "engine: 'dpd' is not valid; expected ddp" in text
    assert "seeds: 0 is out of range; expected a whole number of at least 1" in text
    assert "nonsense: is not an override" in text
    assert "mixed_precision: 'fp16' is not valid" in text


def test_settings_that_exclude_each_other_are_faults() -> None:
    with pytest.raises(UserError, match="clip_norm: 1 and clip_gradient=2 exclude each other"):
        read_settings(["clip_norm=1.0", "clip_gradient=2.0", "engine=deepspeed"])
    with pytest.raises(UserError, match="mixed_precision: bf16 has no effect on float64"):
        read_settings(["mixed_precision=bf16"], CONFIG)


# Reporters


class Failing(Listener):
    def epoch(self, record: EpochRecord) -> None:
        raise OSError("the service is gone")


def test_a_failing_reporter_stops_nothing(tmp_path: Path) -> None:
    task, listener = image_task(mlp), Listener()
    (result,) = retrain(
        lambda seed: task, task.build_model, SCHEDULE, IN_FLOAT64, ONE_RANK, tmp_path, [Failing(), listener]
    )
    assert len(result.epochs) == len(listener.epochs) == 3
    assert [note for note in listener.notes if "Failing failed" in note and "the service is gone" in note]


@pytest.mark.parametrize("terminal", [False, True])
def test_console_has_a_line_per_epoch_and_the_summary(tmp_path: Path, terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, force_interactive=terminal, width=200, color_system=None)
    task, settings = image_task(mlp), in_float64(3, seeds=2)
    retrain(lambda seed: task, task.build_model, SCHEDULE, settings, ONE_RANK, tmp_path, [ConsoleReporter(console)])
    text = file.getvalue()
    assert "retrain seed 1 (2 of 2): 3 epochs, 15 steps, cpu, 1 rank" in text
    lines = [line for line in text.splitlines() if "test accuracy" in line and "epoch" in line and "train loss" in line]
    assert len(lines) == 6 and "lr 0.2, momentum 0.9, weight_decay 0.01" in lines[-1]
    assert "retrained 2 seeds: final test accuracy" in text and "standard deviation" in text
    assert ("\x1b[" in text) == terminal  # cursor movements of a live bar belong in a terminal alone


def test_console_tells_what_was_done_before(tmp_path: Path) -> None:
    file = io.StringIO()
    task, console = image_task(mlp), Console(file=file, width=200)
    for listener in (interrupt_after(12), ConsoleReporter(console), ConsoleReporter(console)):
        with contextlib.suppress(Interruption):
            retrain(lambda seed: task, task.build_model, SCHEDULE, IN_FLOAT64, ONE_RANK, tmp_path, [listener])
    first, second = file.getvalue().split("retrained 1 seed")[:2]
    assert "continues after 2 epochs" in first and "epoch 3/3" in first and "epoch 2/3" not in first
    assert "already done" in second and "epoch 3/3" not in second
