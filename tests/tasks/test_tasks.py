"""Tasks: what they hand out, and what they say to bad input."""

from __future__ import annotations

import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fds_dist.common.faults import UserError
from fds_dist.common.randomness import derive_seed, generator, seeded
from fds_dist.tasks import build_task
from fds_dist.tasks.base import loss_takes_hyperparameters, task_faults, validation_loss
from fds_dist.tasks.datasets import TensorTask, task_from_datasets
from fds_dist.tasks.digits import MEAN, STD, digits
from fds_dist.tasks.synthetic import synthetic


def numbered(samples=1100, **options):
    """A task whose inputs are their own indices, so that batches tell which samples they hold."""
    inputs = torch.arange(samples, dtype=torch.float32)[:, None]
    return TensorTask(inputs, torch.arange(samples) % 3, **{"batch_size": 64, **options})


def indices(batches):
    return [int(x) for inputs, _ in batches for x in inputs[:, 0]]


def faults_of(function, *args, **kwargs):
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    return {fault.key: str(fault) for fault in error.value.faults}


# Randomness


def test_seeds_are_stable_and_tell_keys_apart():
    assert derive_seed(0, "split", 3) == 6983916786341917709  # a change would change every run ever recorded
    seeds = [derive_seed(*keys) for keys in [(1,), ("1",), (1, 2), (12,), ("ab", "c"), ("a", "bc"), (2, 1)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_with_the_same_keys_draw_the_same():
    assert torch.equal(torch.rand(5, generator=generator(1, "a")), torch.rand(5, generator=generator(1, "a")))
    assert not torch.equal(torch.rand(5, generator=generator(1, "a")), torch.rand(5, generator=generator(1, "b")))


def test_seeded_leaves_no_trace():
    before = torch.get_rng_state()
    with seeded(7):
        first = torch.rand(3)
    with seeded(7):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


# Splits and batches


@pytest.mark.parametrize("outer_step", [0, 1])
def test_training_and_validation_never_overlap_and_cover_everything(outer_step):
    task = numbered(batch_size=10, val_fraction=0.5)
    val, train = indices(task.val_batches(outer_step)), indices(task.train_batches(outer_step, 0))
    assert len(val) == len(set(val)) == 550
    assert sorted(val + train) == list(range(1100))


def test_validation_comes_in_batches_of_at_most_500():
    batches = list(numbered(val_fraction=0.5, batch_size=10).val_batches(0))
    assert [len(x) for x, _ in batches] == [500, 50]


def test_batches_are_a_function_of_their_arguments_and_the_seed():
    task, twin, other = numbered(), numbered(), numbered(seed=1)
    first = indices(task.train_batches(2, 1))
    indices(task.train_batches(0, 0))  # what was asked for in between does not matter
    assert indices(task.train_batches(2, 1)) == first == indices(twin.train_batches(2, 1))
    assert indices(task.val_batches(2)) == indices(twin.val_batches(2))
    assert indices(other.train_batches(2, 1)) != first
    assert set(indices(other.val_batches(2))) != set(indices(task.val_batches(2)))


def test_epochs_reorder_and_outer_steps_split_anew():
    task = numbered(samples=640, batch_size=64, val_fraction=0.1)  # 576 = 9 × 64 for training: nothing is dropped
    epochs = [indices(task.train_batches(0, epoch)) for epoch in range(2)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])
    assert set(indices(task.val_batches(0))) != set(indices(task.val_batches(1)))


def test_the_last_partial_training_batch_is_dropped():
    task = numbered(samples=1100, batch_size=64, val_fraction=0.1)  # 990 = 15 × 64 + 30
    batches = list(task.train_batches(0, 0))
    assert task.steps_per_epoch == len(batches) == 15
    assert all(len(x) == len(y) == 64 for x, y in batches)


def test_targets_stay_with_their_inputs():
    task = numbered()
    for inputs, targets in [*task.train_batches(0, 0), *task.val_batches(0)]:
        assert torch.equal(inputs[:, 0].long() % 3, targets)


def test_own_validation_data_stay_the_same_and_leave_all_samples_to_training():
    own = torch.arange(5000, 5600, dtype=torch.float32)[:, None]
    task = numbered(samples=128, val_inputs=own, val_targets=torch.zeros(600, dtype=torch.int64))
    assert indices(task.val_batches(0)) == indices(task.val_batches(1)) == list(range(5000, 5600))
    assert sorted(indices(task.train_batches(0, 0))) == list(range(128))


def test_test_data_are_yielded_once_or_not_at_all():
    task = numbered(test_inputs=torch.arange(501.0)[:, None], test_targets=torch.zeros(501, dtype=torch.int64))
    assert indices(task.test_batches()) == list(range(501))
    assert list(numbered().test_batches()) == []


@pytest.mark.parametrize(("overlap", "steps"), [(False, 8), (True, 11)])
def test_validation_samples_stay_in_training_on_request(overlap, steps):
    task = numbered(samples=110, batch_size=10, val_fraction=0.2, val_overlap=overlap)
    train, val = indices(task.train_batches(0, 0)), indices(task.val_batches(0))
    assert task.steps_per_epoch == steps
    assert len(set(train)) == 10 * task.steps_per_epoch and len(set(val)) == 22
    assert set(val) <= set(train) if overlap else not set(val) & set(train)


def test_a_retraining_epoch_is_over_all_samples_and_keyed_by_its_number():
    task = numbered(samples=105, batch_size=10, val_fraction=0.5)
    epochs = [indices(task.retrain_batches(epoch)) for epoch in (0, 0, 1)]
    assert task.retrain_steps_per_epoch == 10 and task.steps_per_epoch == 5
    assert all(len(epoch) == len(set(epoch)) == 100 for epoch in epochs)
    assert epochs[0] == epochs[1] != epochs[2]
    assert indices(numbered(samples=105, batch_size=10, seed=1).retrain_batches(0)) != epochs[0]


def test_all_parts_move_to_a_device():
    pair = torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)
    task = TensorTask(*pair, *pair, val_inputs=pair[0], val_targets=pair[1], batch_size=2)
    task.to(torch.device("meta"))  # a device without memory that every machine has
    for batches in (task.train_batches(0, 0), task.retrain_batches(0), task.val_batches(0), task.test_batches()):
        assert {part.device.type for batch in batches for part in batch} == {"meta"}


def test_inputs_are_prepared_and_those_for_training_augmented():
    def minus_one(inputs, random):
        return inputs - torch.randint(1, 2, inputs.shape, generator=random)

    task = numbered(samples=100, batch_size=10, prepare=lambda inputs: 1000 + inputs, augment=minus_one)
    assert sorted([*indices(task.val_batches(0)), *(1 + x for x in indices(task.train_batches(0, 0)))]) == list(
        range(1000, 1100)
    )


def test_shape_and_classes():
    labels = torch.tensor([0, 4, 1, 2], dtype=torch.int32)
    task = TensorTask(torch.zeros(4, 3, 8, 8), labels, batch_size=2)
    assert (task.input_shape, task.classes) == ((3, 8, 8), 5)
    assert next(iter(task.train_batches(0, 0)))[1].dtype == torch.int64  # what cross-entropy takes
    assert not hasattr(TensorTask(torch.zeros(4, 3), torch.zeros(4), batch_size=2), "classes")
    assert not hasattr(TensorTask(torch.zeros(4, 3), torch.zeros(4, 2).long(), batch_size=2), "classes")


def test_bad_arguments_are_all_named_at_once():
    faults = faults_of(numbered, batch_size=0, val_fraction=1.0, val_inputs=torch.zeros(3, 1))
    assert set(faults) == {"task.batch_size", "task.val_fraction", "task.val_targets"}
    assert "990" in faults_of(numbered, batch_size=991)["task.batch_size"]
    assert "(7, 1) and (6,)" in faults_of(TensorTask, torch.zeros(7, 1), torch.zeros(6), batch_size=2)["task.targets"]


# Models of a task's own


def test_a_plain_module_is_the_tasks_network_whatever_the_seed():
    module = nn.Linear(1, 3)
    task = numbered(model=module)
    assert task.build_model(0) is task.build_model(1) is module


def test_a_model_function_that_forgets_its_seed_still_depends_on_it_alone():
    state = torch.get_rng_state()
    task = numbered(model=lambda seed: nn.Linear(1, 3))
    first, again, other = (task.build_model(seed).get_parameter("weight") for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(numbered(), "build_model")


# Datasets


class Squares(torch.utils.data.Dataset):
    """(x, x²) as a 1-vector and a number."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.tensor([float(index)]), float(index**2)


def test_a_dataset_of_pairs_becomes_a_task():
    task = task_from_datasets(Squares(), test=Squares(), batch_size=4, loss=F.l1_loss)
    assert task.input_shape == (1,) and task.steps_per_epoch == 4  # 18 of 20 for training
    assert task_faults(task) == []
    for inputs, targets in [*task.train_batches(0, 0), *task.test_batches()]:
        assert torch.equal(inputs[:, 0] ** 2, targets)


def test_integer_targets_of_a_dataset_are_classes():
    task = task_from_datasets([(torch.zeros(2), i % 4) for i in range(10)], batch_size=2)
    assert task.classes == 4


def test_pairs_of_tensors_need_no_dataset():
    pair = torch.arange(20.0)[:, None], torch.arange(20)
    task = task_from_datasets(pair, val=pair, batch_size=5)
    assert indices(task.val_batches(3)) == list(range(20))
    assert task.steps_per_epoch == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (42, "int has no length"),
        ([], "empty"),
        ([torch.zeros(3)] * 3, "sample 0 is a Tensor"),
        ([(1, 2, 3)] * 3, "sample 0 is 3 parts"),
        ([("cat", 1)] * 3, "sample 0 is (str, int)"),
        ([(torch.zeros(2), 0), (torch.zeros(3), 0)], "x of sample 1 has shape (3,), that of sample 0 (2,)"),
        ([(torch.zeros(2), 0), (torch.zeros(2), torch.zeros(1))], "y of sample 1 has shape (1,)"),
    ],
)
def test_what_is_not_a_dataset_of_pairs_is_told(data, message):
    assert message in faults_of(task_from_datasets, data)["task.train"]


# Digits


def test_the_test_part_of_digits_is_stratified_and_the_same_for_every_seed():
    (inputs, targets), (others, _) = (next(iter(digits(seed=seed).test_batches())) for seed in (0, 1))
    assert inputs.shape == (360, 1, 8, 8) and inputs.dtype == torch.float32
    assert torch.equal(inputs, others)
    share = torch.bincount(targets) / 360
    assert share.min() > 0.09 and share.max() < 0.11  # the classes have 174 to 183 of all 1,797 images


def test_digits_are_normalized_and_never_in_two_parts():
    task = digits(batch_size=1, val_fraction=0.2)
    train = torch.cat([x for x, _ in task.train_batches(0, 0)])
    val = torch.cat([x for x, _ in task.val_batches(0)])
    test = torch.cat([x for x, _ in task.test_batches()])
    assert (len(train), len(val)) == (1150, 287)
    everything = torch.cat([train, val, test])
    assert len(everything.unique(dim=0)) == 1797  # no two images of this set are equal
    pixels = everything * STD + MEAN
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6  # float32 rounding of a number of size 1
    fitted = torch.cat([train, val])
    assert abs(fitted.mean()) < 1e-3 and abs(fitted.std() - 1) < 1e-3  # MEAN and STD have four digits
    assert (task.input_shape, task.classes) == ((1, 8, 8), 10)


# The oracle


def test_gradient_descent_on_the_oracle_follows_the_closed_form():
    task, lr, steps = synthetic(seed=3), 0.5, 50
    model = task.build_model(0)
    for epoch in range(-(-steps // task.steps_per_epoch)):
        for inputs, targets in list(task.train_batches(0, epoch))[: steps - epoch * task.steps_per_epoch]:
            (gradient,) = torch.autograd.grad(task.loss(model(inputs), targets), model.weight)
            with torch.no_grad():
                model.weight -= lr * gradient
    contraction = torch.eye(10, dtype=torch.float64) - lr * task.curvature
    expected = task.optimum + torch.linalg.matrix_power(contraction, steps) @ (task.w0 - task.optimum)
    # 50 contracting float64 steps, each with an error of some 1e-15
    torch.testing.assert_close(model.weight[0].detach(), expected, rtol=0, atol=1e-12)
    assert (expected - task.w0).norm() > 0.5  # it moved


def test_curvature_and_optima_of_the_oracle_are_those_of_its_losses():
    task = synthetic(dimension=6, samples=9, condition=100.0)
    eigenvalues = torch.linalg.eigvalsh(task.curvature)
    assert float(eigenvalues[-1]) == pytest.approx(1) and float(eigenvalues[0]) == pytest.approx(0.01)
    for batches, optimum in [(task.train_batches(0, 0), task.optimum), (task.val_batches(0), task.val_optimum)]:
        inputs, targets = next(iter(batches))

        def loss(w, inputs=inputs, targets=targets):
            return task.loss((inputs @ w)[:, None], targets)

        hessian, gradient = torch.func.hessian(loss)(task.w0), torch.func.grad(loss)(task.w0)
        torch.testing.assert_close(hessian, task.curvature, rtol=0, atol=1e-14)  # float64 rounding
        torch.testing.assert_close(gradient, task.curvature @ (task.w0 - optimum), rtol=0, atol=1e-14)


def test_the_oracle_ignores_outer_step_epoch_and_model_seed_but_not_its_own():
    task = synthetic()
    first, later = (list(task.train_batches(*when)) for when in [(0, 0), (4, 7)])
    assert len(first) == task.steps_per_epoch
    assert all(torch.equal(a, b) for x, y in zip(first, later, strict=True) for a, b in zip(x, y, strict=True))
    assert torch.equal(task.build_model(0).weight, task.build_model(9).weight)
    assert torch.equal(task.optimum, synthetic().optimum) and not torch.equal(task.optimum, synthetic(seed=1).optimum)


def test_training_one_model_of_the_oracle_leaves_the_next_at_the_start():
    task = synthetic()
    with torch.no_grad():
        task.build_model(0).weight.zero_()
    assert torch.equal(task.build_model(0).weight[0], task.w0)


def test_options_of_the_oracle_are_checked():
    faults = faults_of(synthetic, dimension=0, condition=0.5)
    assert set(faults) == {"task.dimension", "task.condition"}
    assert "at least dimension, 10" in faults_of(synthetic, samples=9)["task.samples"]


# Tasks by name


def build(name, options=None, seed=0) -> Any:
    return build_task(name, options or {}, seed=seed)


@pytest.mark.parametrize("name", ["digits", "synthetic"])  # those that need no files
def test_named_tasks_are_tasks(name):
    task = build(name)
    assert task_faults(task) == []
    assert len(list(task.train_batches(0, 0))) == task.steps_per_epoch
    assert list(task.val_batches(0)) and list(task.test_batches())


def test_the_seed_is_passed_on_unless_the_options_have_one():
    own, given = synthetic(seed=5).optimum, build("synthetic", seed=5)
    assert torch.equal(given.optimum, own)
    assert torch.equal(build("synthetic", {"seed": 5}).optimum, own)


def test_unknown_names_and_options_are_told_with_the_nearest():
    unknown = faults_of(build, "digit")["task.name"]
    assert "did you mean digits" in unknown and "synthetic" in unknown
    assert "did you mean task.batch_size" in faults_of(build, "digits", {"batch_sise": 3})["task.batch_sise"]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Writes a user's module into the current folder; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    return write


def test_a_users_own_task_gets_its_options_and_the_seed(own_module):
    own_module(
        "own_task_good",
        """
        import torch
        from fds_dist.tasks.datasets import task_from_datasets

        def make(size, seed):
            task = task_from_datasets((torch.zeros(size, 2), torch.arange(size) % 2), batch_size=4)
            task.told = size, seed
            return task
        """,
    )
    assert build("own_task_good:make", {"size": 12}, seed=9).told == (12, 9)
    assert set(faults_of(build, "own_task_good:make")) == {"task.size"}


def test_an_exception_in_a_users_function_becomes_one_line(own_module):
    own_module(
        "own_task_raises",
        """
        def make():
            return helper()

        def helper():
            raise RuntimeError("first line\\nsecond line")
        """,
    )
    (message,) = faults_of(build, "own_task_raises:make").values()
    assert "own_task_raises:make" in message and "RuntimeError: first line second line" in message
    assert "own_task_raises.py:6" in message  # where it was raised
    assert "\n" not in message


def test_what_a_users_function_returns_is_checked(own_module):
    own_module("own_task_wrong", "def make():\n    return 3")
    faults = faults_of(build, "own_task_wrong:make")
    assert {"task.train_batches", "task.val_batches", "task.test_batches", "task.steps_per_epoch"} < set(faults)


# The members of a user's object


def fine(**changes) -> Any:
    """A user's object with all required members, changed."""
    members = {
        "train_batches": lambda outer_step, epoch: [],
        "val_batches": lambda outer_step: [],
        "test_batches": list,
        "steps_per_epoch": 3,
        "loss": F.cross_entropy,
    }
    return SimpleNamespace(**{**members, **changes})


def loss_of_three(output, target, values):
    return output.sum()


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, set()),
        ({"loss": nn.CrossEntropyLoss()}, set()),
        ({"loss": loss_of_three, "val_loss": F.cross_entropy}, set()),
        ({"input_shape": (1, 8, 8), "classes": 10, "build_model": lambda seed: nn.Linear(1, 1)}, set()),
        ({"steps_per_epoch": 0}, {"task.steps_per_epoch"}),
        ({"steps_per_epoch": True}, {"task.steps_per_epoch"}),
        ({"steps_per_epoch": None, "loss": None}, {"task.steps_per_epoch", "task.loss"}),
        ({"steps_per_epoch": lambda: 3}, {"task.steps_per_epoch"}),
        ({"train_batches": []}, {"task.train_batches"}),
        ({"train_batches": lambda outer_step: []}, {"task.train_batches"}),
        ({"val_batches": lambda a, b: [], "test_batches": lambda step: []}, {"task.val_batches", "task.test_batches"}),
        ({"loss": lambda output: output.sum()}, {"task.loss"}),
        ({"loss": loss_of_three}, {"task.val_loss"}),
        ({"loss": loss_of_three, "val_loss": loss_of_three}, {"task.val_loss"}),
        ({"build_model": nn.Identity()}, set()),
        ({"build_model": lambda: nn.Identity()}, {"task.build_model"}),
        ({"retrain_batches": lambda epoch: [], "retrain_steps_per_epoch": 3, "to": lambda device: None}, set()),
        ({"retrain_batches": lambda epoch: []}, {"task.retrain_steps_per_epoch"}),
        ({"retrain_batches": lambda: [], "to": 3}, {"task.retrain_batches", "task.retrain_steps_per_epoch", "task.to"}),
        ({"input_shape": 3, "classes": 2.0}, {"task.input_shape", "task.classes"}),
    ],
)
def test_faults_of_a_users_object_name_the_member(changes, keys):
    assert {fault.key for fault in task_faults(fine(**changes))} == keys


def test_only_a_third_parameter_without_default_takes_hyperparameters():
    class OwnLoss(nn.Module):
        def forward(self, output, target, values):
            return output.sum()

    assert loss_takes_hyperparameters(fine(loss=loss_of_three))
    assert loss_takes_hyperparameters(fine(loss=OwnLoss()))
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(), lambda output, target: output, lambda *both: both):
        assert not loss_takes_hyperparameters(fine(loss=loss))


def test_validation_loss_is_val_loss_or_loss():
    assert validation_loss(fine()) is F.cross_entropy
    assert validation_loss(fine(loss=loss_of_three, val_loss=F.l1_loss)) is F.l1_loss
    assert validation_loss(numbered(loss=F.l1_loss)) is F.l1_loss
