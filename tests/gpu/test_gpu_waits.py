"""A step on a GPU makes the host wait for nothing: PyTorch itself raises where it would, and copies arrive whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from gpu_cases import BUCKETS, CLASSES, DEVICE, HORIZON, NETWORKS, SIDE, problem_of
from problems import flat
from torch import Tensor

from fds_dist.common.randomness import generator
from fds_dist.inner.estimate import Estimator
from fds_dist.inner.estimators import ESTIMATORS
from fds_dist.inner.estimators.greedy import greedy_estimator
from fds_dist.inner.run import InnerRun, InnerState
from fds_dist.tasks.augmentation import Augmentation
from fds_dist.tasks.images import Normalize
from fds_dist.tasks.in_memory import TensorTask

pytestmark = pytest.mark.gpu

WAYS: dict[str, tuple[str, Estimator]] = {
    "jvp": ("jvp", ESTIMATORS["forward"]),
    "double_backward": ("double_backward", ESTIMATORS["forward"]),
    "difference": ("difference", ESTIMATORS["forward"]),
    "reverse": ("double_backward", ESTIMATORS["reverse"]),
    "greedy": ("jvp", greedy_estimator(0.9)),
}


@pytest.fixture
def _waiting_allowed() -> Iterator[None]:
    """Afterwards, whatever happened."""
    yield
    wait_is("default")


def wait_is(mode: str) -> None:
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode(mode)


def only_the_steps(state: InnerState, loss: Tensor) -> bool:
    """The `OnStep` that forbids waits from the second step to the last one."""
    wait_is("error" if state.step < HORIZON else "default")
    return True


def augmented(device: torch.device) -> TensorTask:
    """Two batches of 8 images of bytes per epoch, cropped, mirrored and cut out."""
    random = generator("gpu", "bytes")
    pixels = torch.randint(256, (24, 1, SIDE, SIDE), generator=random, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (24,), generator=random)
    changes = {"prepare": Normalize((0.5,), (0.2,)), "augment": Augmentation(1, True, 2)}
    task = TensorTask(
        pixels, labels, batch_size=8, val_fraction=1 / 3, model=lambda seed: NETWORKS["lenet"](), **changes
    )
    task.to(device)
    return task


@pytest.mark.usefixtures("_waiting_allowed")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("network", ["lenet", "wrn", "transformer"])
def test_a_step_waits_for_nothing(network: str, way: str) -> None:
    """The task gives its batches on the CPU."""
    method, estimator = WAYS[way]
    estimator(InnerRun(problem_of(network, method, DEVICE), flat(BUCKETS), 0, HORIZON, on_step=only_the_steps))


@pytest.mark.usefixtures("_waiting_allowed")
@pytest.mark.parametrize("way", ["jvp", "reverse"])
def test_images_in_memory_wait_for_nothing(way: str) -> None:
    method, estimator = WAYS[way]
    problem = replace(problem_of("lenet", method, DEVICE), task=augmented(DEVICE))
    estimator(InnerRun(problem, flat(BUCKETS), 0, HORIZON, on_step=only_the_steps))


def test_a_gpu_gets_the_batches_of_the_cpu() -> None:
    """Three epochs in a row, whose copies may not overwrite each other."""

    def batches(device: torch.device) -> list[tuple[Tensor, Tensor]]:
        task = augmented(device)
        return [batch for epoch in range(3) for batch in task.train_batches(0, epoch)]

    for (x, y), (expected_x, expected_y) in zip(batches(DEVICE), batches(torch.device("cpu")), strict=True):
        assert torch.equal(
            x.cpu(), expected_x
        )  # one product and one difference per pixel: no sum, no rounding to differ
        assert torch.equal(y.cpu(), expected_y)
