"""Samples of any structure, in memory or read anew: the same batches, as functions of seed, outer step and epoch."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import fds_dist
from fds_dist.common.faults import UserError
from fds_dist.tasks import reading
from fds_dist.tasks.datasets import task_from_datasets
from fds_dist.tasks.inspection import same_batch

SAMPLES = 40


class Samples(Dataset[Any]):
    """Samples by a function of their index."""

    def __init__(self, sample: Callable[[int], Any], samples: int = SAMPLES) -> None:
        self.sample, self.samples = sample, samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        return self.sample(index)


def mapping(index: int) -> Any:
    return {"ids": [index, index + 1], "mask": np.ones(2, dtype=bool), "labels": index % 2}


def nested(index: int) -> Any:
    return {"image": torch.full((2,), float(index)), "size": index}, (index % 2, torch.ones(3))


def noisy(index: int) -> Any:
    return torch.full((2,), float(index)) + torch.rand(2) + np.random.rand() + random.random(), index % 2


def ragged(index: int) -> Any:
    return [1.0] * (1 + index % 3), index


def padded(samples: list[Any]) -> Any:
    """Lists of several lengths as one tensor, with their lengths, and noise from a global generator."""
    values = nn.utils.rnn.pad_sequence([torch.tensor(x) for x, _ in samples], batch_first=True)
    return {"x": values + torch.rand(()), "lengths": torch.tensor([len(x) for x, _ in samples])}, torch.tensor(
        [y for _, y in samples]
    )


class Stream(IterableDataset[Any]):
    """Pairs without end, in an order of the global generator's or of the epoch's."""

    def __init__(self, samples: int | None = None, fails: bool = False) -> None:
        self.samples, self.fails, self.epochs = samples, fails, []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Any]:
        count = 0
        while self.samples is None or count < self.samples:
            if self.fails and count == 7:
                raise ValueError("no shard 7")
            yield torch.rand(2) + np.random.rand(), count % 2
            count += 1


def message_of(function: Callable[..., object], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        function(*arguments, **options)
    (fault,) = raised.value.faults
    return str(fault)


def epoch(task: Any, *arguments: int) -> list[Any]:
    return list(task.train_batches(*(arguments or (0, 0))))


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) > 0 and all(map(same_batch, one, other))


# --- structure ---


@pytest.mark.parametrize("sample", [mapping, nested])
@pytest.mark.parametrize("how", ["stream", "workers", "too large", "several at once"])
def test_samples_of_any_structure_are_the_same_in_memory_and_read_anew(
    sample: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = task_from_datasets(Samples(sample), batch_size=6)
    dataset = Samples(sample)
    options: dict[str, Any] = {"stream": {"stream": True}, "workers": {"workers": 1}}.get(how, {})
    if how == "too large":
        monkeypatch.setattr(reading, "MEMORY", SAMPLES * 10)
        dataset.samples = SAMPLES  # of more than ten bytes
    if how == "several at once":  # as Hugging Face's datasets offer it
        options, dataset.__getitems__ = {"stream": True}, lambda indices: list(map(sample, indices))  # type: ignore[attr-defined]
    read = []
    dataset.sample = lambda index: (read.append(index), sample(index))[1]
    there = task_from_datasets(dataset, batch_size=6, **options)
    assert len(read) < SAMPLES
    assert same(epoch(here, 1, 2), epoch(there, 1, 2)) and same(list(here.val_batches(3)), list(there.val_batches(3)))
    assert same(list(here.retrain_batches(1)), list(there.retrain_batches(1)))


def test_the_structure_of_a_batch_is_that_of_a_sample() -> None:
    batch = epoch(task_from_datasets(Samples(mapping), batch_size=6))[0]
    assert {name: (list(part.shape), part.dtype) for name, part in batch.items()} == {
        "ids": ([6, 2], torch.int64),
        "mask": ([6, 2], torch.bool),
        "labels": ([6], torch.int64),
    }
    assert torch.equal(batch["ids"][:, 0] % 2, batch["labels"])
    inputs, targets = epoch(task_from_datasets(Samples(nested), batch_size=6))[0]
    assert torch.equal(inputs["image"][:, 0], inputs["size"].float()) and torch.equal(inputs["size"] % 2, targets[0])


def test_collate_makes_batches_of_samples_of_any_kind() -> None:
    assert "x of sample 1 has shape (2,), that of sample 0 (1,)" in message_of(task_from_datasets, Samples(ragged))
    task = task_from_datasets(Samples(ragged), collate=padded, batch_size=6)
    for inputs, targets in epoch(task):
        assert inputs["x"].shape == (6, 3) and torch.equal(inputs["lengths"], 1 + targets % 3)
    assert same(epoch(task), epoch(task)) and not same(epoch(task), epoch(task, 0, 1))


def test_a_search_and_a_retraining_take_mappings_and_augment_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draws: list[float] = []

    def augment(batch: Any, generator: torch.Generator) -> Any:
        draws.append(torch.rand((), generator=generator).item())
        return {**batch, "x": batch["x"] + draws[-1]}

    class Network(nn.Linear):
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)

    def loss(output: Tensor, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(output, batch["labels"])

    dataset = Samples(lambda index: {"x": [8.0 * (index % 2) - 4, 1.0], "labels": index % 2})
    task = task_from_datasets(dataset, test=dataset, batch_size=6, augment=augment, loss=loss)
    for number in (0, 1, 0):
        epoch(task, 1, number)
    first, other, again = draws[:6], draws[6:12], draws[12:]
    assert first == again and len({*first, *other}) == 12
    config = {"hyperparameters": {"lr": {"init": 0.1, "step": 0.05}}, "outer": {"optimizer": "sign", "steps": 1}}
    result = fds_dist.optimize(config, task=task, model=Network(2, 2), progress=False)
    done = fds_dist.retrain(result.run_dir, ["epochs=5"], task=task, model=Network(2, 2), progress=False)
    assert done.results[0].final.test_loss < 0.3  # from about 1.5: the classes lie 8 apart


# --- workers ---


@pytest.mark.parametrize("options", [{}, {"collate": padded}], ids=["transform", "collate"])
def test_batches_do_not_depend_on_the_number_of_workers(options: Any) -> None:
    dataset = Samples(ragged if options else noisy)
    tasks = [task_from_datasets(dataset, batch_size=6, stream=True, workers=count, **options) for count in (0, 1, 3)]
    before = torch.get_rng_state(), random.getstate()
    epochs = [[epoch(task, 1, number) for number in (0, 1)] for task in tasks]
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    for others in epochs[1:]:
        assert all(map(same, epochs[0], others))
    assert not same(*epochs[0])


def test_workers_stay_and_serve_several_open_epochs() -> None:
    task = task_from_datasets(Samples(lambda index: (torch.tensor([index, os.getpid()]), 0)), batch_size=6, workers=2)
    next(task.train_batches(0, 0))  # left in its midst
    outer, inner = task.train_batches(0, 0), task.val_batches(0)  # a run in its midst, and its validation
    batches = [next(outer), *inner, *outer]
    pids = {int(pid) for inputs, _ in [*batches, *epoch(task), *epoch(task, 0, 1)] for pid in inputs[:, 1]}
    assert os.getpid() not in pids and len(pids) <= 3 * 2  # at most three epochs were open at once
    assert sorted(int(index) for inputs, _ in batches for index in inputs[:, 0])[:36] == list(range(36))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_fails_is_one_line(workers: int) -> None:
    val, options = Samples(noisy_free), {"batch_size": 5, "stream": True, "workers": workers}
    dataset = Samples(lambda index: (1.0, {20: 1}[index] if index >= 20 else 0))
    message = message_of(epoch, task_from_datasets(dataset, val, **options))
    assert message.startswith("task.train: reading samples raised KeyError: ") and "Traceback" not in message
    unlike = Samples(lambda index: ([1.0] * (1 + index // 30), 0))
    message = message_of(epoch, task_from_datasets(unlike, val, **options))
    assert "x of sample" in message and "; expected (x, y) pairs, or mappings, of tensors" in message


# --- streams ---


def streamed(stream: Any, **options: Any) -> Any:
    return task_from_datasets(stream, val=Samples(noisy_free), **{"batch_size": 5, "steps_per_epoch": 3, **options})


def noisy_free(index: int) -> Any:
    return torch.full((2,), float(index)), index % 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", ["dataset", "loader"])
def test_a_stream_is_a_function_of_outer_step_and_epoch(workers: int, how: str) -> None:
    stream = Stream()
    loader = DataLoader(stream, batch_size=5, num_workers=workers)
    task = streamed(stream, workers=workers) if how == "dataset" else streamed(loader, batch_size=None)
    before = torch.get_rng_state()
    first, other, again = epoch(task, 1, 0), epoch(task, 1, 1), epoch(task, 1, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(x) for x, _ in first] == [5, 5, 5] and task.steps_per_epoch == 3 and task.input_shape == (2,)
    assert same(first, again) and not same(first, other) and same(first, epoch(streamed(Stream()), 1, 0))
    if not workers:
        assert stream.epochs[0] == stream.epochs[2] != stream.epochs[1]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: task_from_datasets(Stream(), steps_per_epoch=3), "task.val: is missing, and Stream cannot be split"),
        (lambda: streamed(Stream(), workers=2), "task.workers: 2 would each read Stream in their own way"),
        (lambda: streamed(Samples(noisy)), "task.steps_per_epoch: 3 is of no use: Samples is no iterable dataset"),
        (lambda: streamed(Stream(), steps_per_epoch=0), "task.steps_per_epoch: 0 is out of range; expected a whole"),
        (lambda: streamed(Stream(), workers=-1), "task.workers: -1 is out of range"),
        (lambda: epoch(streamed(Stream(fails=True))), "task.train: reading samples raised ValueError: no shard 7"),
        (
            lambda: epoch(streamed(Stream(fails=True), workers=1)),
            "task.train: reading samples raised ValueError: no",
        ),
        (lambda: task_from_datasets(Stream()), "expected steps_per_epoch= (as train), a dataset with a length"),
        (lambda: task_from_datasets(Samples(noisy), collate=padded, stream=False), "task.collate: has no use for"),
        (lambda: task_from_datasets(Samples(noisy)), "is another one when it is read again"),
    ],
)
def test_what_cannot_be_read_so_is_told(function: Callable[[], object], expected: str) -> None:
    assert expected in message_of(function)


def test_a_stream_that_ends_too_early_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = streamed(Stream(12))
    config = {"hyperparameters": {"lr": {"init": 0.1, "step": 0.05}}, "outer": {"optimizer": "sign", "steps": 1}}
    message = message_of(fds_dist.optimize, config, task=task, model=nn.Linear(2, 2), progress=False)
    assert "train_batches(outer_step=0, epoch=0) gave 2 batches; expected at least steps_per_epoch = 3" in message
