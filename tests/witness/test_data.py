"""Data that are wrong or unusual: taken, or refused before training by one line that names them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler, TensorDataset

import fds_dist
from fds_dist.common.faults import UserError
from fds_dist.common.randomness import keyed
from fds_dist.tasks.datasets import task_from_datasets
from fds_dist.tasks.inspection import non_finite

NAN, INF = float("nan"), float("inf")


def data(samples: int = 60) -> tuple[Tensor, Tensor]:
    """Two classes of 6 features."""
    x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


class OwnTask:
    """A user's own task: three training batches of 8, two validation batches."""

    steps_per_epoch = 3

    def __init__(self, **members: Any) -> None:
        x, y = data(40)
        self.train: list[Any] = list(zip(x[:24].split(8), y[:24].split(8), strict=True))
        self.val: list[Any] = list(zip(x[24:].split(8), y[24:].split(8), strict=True))
        vars(self).update(members)

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        return iter(self.train)

    def val_batches(self, outer_step: int) -> Any:
        return iter(self.val)

    def test_batches(self) -> Any:
        return iter(self.val)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(6, 2)


def with_batch_norm(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


def optimize(task: Any, model: Any = linear, **changes: Any) -> Any:
    config: dict[str, Any] = {
        "inner": {"optimizer": "sgd", "epochs": 2},
        "hyperparameters": {"lr": {"init": 0.1, "buckets": 2, "step": 0.01}},
        "outer": {"optimizer": "sign", "steps": 1},
        "dtype": "float64",
    }
    return fds_dist.optimize({**config, **changes}, task=task, model=model, progress=False).history[0]


def message_of(function: Callable[..., object], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        function(*arguments, **options)
    (fault,) = raised.value.faults
    return str(fault)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Numbers that are not finite


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(2, 3), ""),
        (torch.ones(2, 3, dtype=torch.int64), ""),
        (torch.tensor([[1.0, 2.0], [NAN, 3.0]]), "1 of 4 numbers is NaN or infinite, first NaN in sample 1, column 0"),
        (torch.tensor([1.0, -INF, NAN]), "2 of 3 numbers are NaN or infinite, first infinity in sample 1"),
        (torch.full((1, 1, 2), INF), "2 of 2 numbers are NaN or infinite, first infinity in sample 0, index [0, 0]"),
        (torch.tensor(NAN), "1 of 1 number is NaN or infinite, first NaN in its only number"),
    ],
)
def test_what_is_not_finite_is_named(values: Tensor, message: str) -> None:
    assert non_finite(values) == message


@pytest.mark.parametrize("part", ["inputs", "targets"])
def test_data_in_memory_are_checked_wholly(part: str) -> None:
    x, y = data()
    tensors = {"inputs": x, "targets": y.double()}
    tensors[part].view(-1)[-1] = INF
    message = message_of(task_from_datasets, tuple(tensors.values()), batch_size=5, loss=F.mse_loss)
    assert message.startswith(f"task.{part}: 1 of ") and "sample 59" in message
    wrong = tensors["inputs"], tensors["targets"]
    assert f"task.val_{part}: 1 of" in message_of(task_from_datasets, data(), val=wrong, batch_size=5)


@pytest.mark.parametrize("estimator", ["forward", "reverse", "greedy"])
@pytest.mark.parametrize(("batch", "when"), [(0, "before"), (2, "after")])
def test_a_training_batch_that_is_not_finite_is_named_before_advice(batch: int, when: str, estimator: str) -> None:
    task = OwnTask()
    task.train[batch][0][3, 2] = NAN
    message = message_of(optimize, task, estimator=estimator)
    assert message.startswith(f"task.train_batches: batch {batch} of train_batches(outer_step=0, epoch=0): 1 of 48")
    assert "first NaN in sample 3, column 2 of the inputs" in message


def test_numbers_that_become_infinite_in_the_dtype_are_named() -> None:
    task = OwnTask()
    task.train[1] = task.train[1][0].double().index_fill(0, torch.tensor([5]), 1e300), task.train[1][1]
    assert "batch 1 of train_batches(outer_step=0, epoch=0): 6 of 48" in message_of(optimize, task, dtype="float32")


def test_a_validation_batch_that_is_not_finite_is_named_before_training() -> None:
    task = OwnTask(steps_per_epoch=4)  # one more than there are: training would end in another fault
    task.val[1][0][0, 0] = INF
    assert "batch 1 of val_batches(outer_step=0): 1 of 48 numbers is" in message_of(optimize, task)


# Sizes


@pytest.mark.parametrize("parts", [501, 500, 2, 1])
def test_a_last_single_sample_joins_the_batch_before_it(parts: int) -> None:
    task = task_from_datasets(data(), val=data(parts), batch_size=20)
    sizes = [len(x) for x, _ in task.val_batches(0)]
    assert sum(sizes) == parts and (1 not in sizes or sizes == [1])
    if parts == 501:
        optimize(task, with_batch_norm)


def test_a_users_own_last_batch_of_one_sample_is_refused_where_the_network_cannot_take_it() -> None:
    task = OwnTask()
    task.val.append(tuple(part[:1] for part in task.val[0]))
    optimize(task)
    optimize(task, with_batch_norm, outer={"steps": 1, "val_batch_norm": "running"})
    message = message_of(optimize, task, with_batch_norm)
    assert message.startswith("task.val_batches: the network raised ValueError on batch 2 of val_batches(outer_step=0)")
    assert "of 1 sample: Expected more than 1 value per channel" in message


def test_a_small_training_batch_is_tried_where_the_task_gives_a_list() -> None:
    task = OwnTask(steps_per_epoch=4)
    task.train.append(tuple(part[:1] for part in task.train[0]))
    task.train_batches = lambda outer_step, epoch: task.train  # type: ignore[method-assign]
    assert "on batch 3 of train_batches(outer_step=0, epoch=0)" in message_of(optimize, task, with_batch_norm)


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        (([], []), {}, "task.inputs: there are no samples"),
        ((torch.zeros(0, 6), torch.zeros(0)), {}, "task.inputs: there are no samples"),
        (data(1), {}, "task.val_fraction: 0.1 of 1 sample leaves none for training"),
        (data(3), {"val_fraction": 0.9}, "task.val_fraction: 0.9 of 3 samples leaves none for training"),
        (data(3), {"val": []}, "task.val: the dataset is empty"),
        (data(3), {"val": (torch.zeros(0, 6), torch.zeros(0))}, "task.val_inputs: there are no samples"),
        (data(3), {"test": DataLoader(TensorDataset(*data(0)))}, "task.test: the dataset is empty"),
    ],
)
def test_empty_parts_are_named(parts: Any, options: dict[str, Any], message: str) -> None:
    assert message in message_of(task_from_datasets, parts, **{"batch_size": 1, **options})


# Kinds of data


@pytest.mark.parametrize(
    "pair",
    [
        tuple(part.numpy() for part in data()),
        tuple(part.tolist() for part in data()),
        [part.numpy() for part in data()],
        (data()[0], data()[1].numpy()),
        (data()[0].T.contiguous().T, data()[1]),  # not contiguous
        list(zip(*data(), strict=True)),
        TensorDataset(*data()),
    ],
)
def test_pairs_of_many_kinds_are_taken(pair: Any) -> None:
    ours, plain = (task_from_datasets(each, batch_size=10) for each in (pair, data()))
    for batch, expected in zip(ours.train_batches(0, 0), plain.train_batches(0, 0), strict=True):
        assert torch.equal(batch[0].float(), expected[0]) and torch.equal(batch[1], expected[1])


class Numbers(Dataset[Any]):
    """Samples by a function of their index."""

    def __init__(self, sample: Callable[[int], Any], samples: int = 40) -> None:
        self.sample, self.samples = sample, samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> Any:
        return self.sample(index)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return ((torch.ones(2) * index, index % 2) for index in range(50))


class Counted(Endless):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


def test_an_iterable_dataset_with_a_length_is_read_and_one_without_is_refused() -> None:
    task = task_from_datasets(Counted(20), val_fraction=0.5, batch_size=5)
    assert sorted(int(x) for inputs, _ in task.retrain_batches(0) for x in inputs[:, 0]) == list(range(20))
    assert "Endless is an iterable dataset without a length" in message_of(task_from_datasets, Endless())
    assert "Counted gave 50 samples; expected 60, its length" in message_of(task_from_datasets, Counted(60))
    loader = DataLoader(Counted(20), batch_size=5)
    assert "Counted is an iterable dataset" in message_of(task_from_datasets, loader)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda index: {"text": "a", "label": 2}, "sample 0 is a dict with the keys text, label, text a str"),
        (lambda index: 1 / index, "reading Numbers raised ZeroDivisionError"),
        (lambda index: (torch.rand(2), 1), "sample 0 is another one when it is read again (a random transform?)"),
        (lambda index: (np.random.rand(2), 1), "sample 0 is another one"),
        (lambda index: (float(index), random.random()), "sample 0 is another one"),
        (lambda index: (1.0, random.choice([1, 2])), "is another one"),
    ],
)
def test_samples_that_cannot_be_kept_are_told(sample: Any, message: str) -> None:
    assert message in message_of(task_from_datasets, Numbers(sample))


# Loaders


def batches_of(task: Any, *arguments: int) -> Tensor:
    return torch.stack([x for x, _ in task.train_batches(*arguments)])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_shuffles_and_transforms_is_a_function_of_outer_step_and_epoch(workers: int) -> None:
    dataset = Numbers(lambda index: (torch.full((2,), float(index)) + 0.1 * torch.rand(2), index % 2))
    task = task_from_datasets(DataLoader(dataset, batch_size=5, shuffle=True, num_workers=workers))
    before = torch.get_rng_state()
    first, other, again = batches_of(task, 0, 0), batches_of(task, 0, 1), batches_of(task, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (7, 5, 2) and task.steps_per_epoch == 7 and task.input_shape == (2,)
    assert torch.equal(first, again) and not torch.equal(first, other)
    samples = {int(x): x % 1 for x in first.flatten(0, 1)[:, 0].tolist()}
    assert any(abs(x % 1 - samples[int(x)]) > 1e-6 for x in other.flatten(0, 1)[:, 0].tolist() if int(x) in samples)


def test_a_loaders_sizes_and_collate_function_are_used() -> None:
    def collate(pairs: list[Any]) -> Any:
        x, y = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return 2 * x, y

    train, val = TensorDataset(*data()), TensorDataset(*data(21))
    loader = DataLoader(train, batch_size=6, shuffle=True, collate_fn=collate)
    task = task_from_datasets(loader, val=DataLoader(val, batch_size=10), test=data(3), model=linear())
    assert [len(x) for x, _ in task.val_batches(0)] == [10, 11] and task.steps_per_epoch == 10
    doubled = {tuple(row) for row in (2 * data()[0]).tolist()}
    assert all(tuple(row) in doubled for x, _ in task.train_batches(0, 0) for row in x.tolist())
    assert len(optimize(task, None).hypergradients["lr"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "does not shuffle"),
        ({"sampler": DistributedSampler(range(60), 2, 0)}, "sampler is a DistributedSampler"),  # type: ignore[arg-type]
        ({"sampler": RandomSampler(range(60), replacement=True)}, "RandomSampler draws 60 of 60 samples with replac"),
        ({"sampler": RandomSampler(range(60), num_samples=9)}, "RandomSampler draws 9 of 60 samples"),
        ({"batch_sampler": [[1, 2], [3]]}, "has a list of its own"),
    ],
)
def test_a_loader_in_another_order_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    assert message in message_of(task_from_datasets, DataLoader(TensorDataset(*data()), **options))


def test_a_loader_of_batches_without_tensors_is_refused() -> None:
    loader = DataLoader(Numbers(lambda index: {"x": "a"}), batch_size=5, shuffle=True)
    message = message_of(lambda: next(iter(task_from_datasets(loader).train_batches(0, 0))))
    assert "task.train: gave a dict, which holds no tensor" in message


def shuffled(how: str) -> Callable[[int, int], Any]:
    """Batches of a user's own that are shuffled by a global generator."""
    x, y = data(24)

    def train_batches(outer_step: int, epoch: int) -> Any:
        if how == "loader":
            return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
        order = list(range(24))
        random.shuffle(order) if how == "random" else np.random.shuffle(order)
        return [(x[chunk], y[chunk]) for chunk in torch.tensor(order).split(8)]

    return train_batches


@pytest.mark.parametrize("how", ["loader", "random", "numpy"])
def test_batches_that_shuffle_by_a_global_generator_are_keyed_by_outer_step_and_epoch(how: str) -> None:
    runs = [
        optimize(OwnTask(train_batches=shuffled(how)), estimator=estimator, inner={"optimizer": "sgd", "epochs": 3})
        for estimator in ("forward", "reverse")
    ]
    assert runs[0].val_loss == runs[1].val_loss
    # Reverse mode replays the same batches: rounding in float64 is what is left.
    assert runs[0].hypergradients["lr"] == pytest.approx(runs[1].hypergradients["lr"], rel=1e-10)


@pytest.mark.parametrize("source", ["train", "val"])
def test_batches_of_a_generator_of_their_own_are_refused(source: str) -> None:
    loader = DataLoader(TensorDataset(*data(24)), 8, shuffle=True, generator=torch.Generator().manual_seed(1))
    message = message_of(optimize, OwnTask(**{f"{source}_batches": lambda *arguments: loader}))
    assert message.startswith(f"task.{source}_batches: {source}_batches(outer_step=0")
    assert "gives another batch when it is asked again; expected a function of its arguments and the seed" in message


def test_keyed_items_leave_the_callers_generators_alone() -> None:
    def draws() -> Iterator[tuple[float, ...]]:
        for _ in range(3):
            yield torch.rand(()).item(), float(np.random.rand()), random.random()

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]
    first = list(keyed(draws, 1, "a"))
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[2]
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[union-attr]
    mixed = []
    for item in keyed(draws, 1, "a"):
        mixed.append(item)
        torch.manual_seed(3)
        np.random.seed(3)
        random.seed(3)
    assert mixed == first and len(set(first)) == 3 and list(keyed(draws, 2, "a")) != first


# Types and shapes that networks and losses do not take


def test_whole_images_are_refused_with_the_way_out() -> None:
    images = torch.randint(256, (40, 6), dtype=torch.uint8)
    message = message_of(optimize, task_from_datasets((images, data(40)[1]), batch_size=5))
    assert "on inputs [5, 6] uint8; images are expected as floats, such as images / 255" in message


def test_targets_in_a_column_are_refused_with_the_way_out() -> None:
    x, y = data()
    message = message_of(optimize, task_from_datasets((x, y[:, None]), batch_size=5))
    assert message.startswith("task.loss: loss(output, target) raised") and "such as target.squeeze(1)" in message


def test_batches_that_are_no_pairs_of_tensors_are_refused() -> None:
    task = OwnTask()
    task.train = [tuple(part.numpy() for part in batch) for batch in task.train]
    assert "task.train_batches: gave a tuple of ndarray, ndarray" in message_of(optimize, task)
    task.train = [SimpleNamespace(x=1)] * 3
    assert "task.train_batches: gave a SimpleNamespace; expected pairs (x, y)" in message_of(optimize, task)
