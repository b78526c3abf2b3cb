"""The image data sets of the literature, through torchvision: MNIST, Fashion-MNIST, SVHN, CIFAR-10, CIFAR-100."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import WrapValidator
from torch import Tensor

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Count, CountOrAll, FolderOrNone, OpenFraction, Pixels, Seed, Switch, one_of
from fds_dist.common.options import checked
from fds_dist.common.paths import expand_path
from fds_dist.common.transfer import to_device
from fds_dist.common.vision import import_torchvision
from fds_dist.tasks.augmentation import Augmentation
from fds_dist.tasks.download import download_once
from fds_dist.tasks.in_memory import TensorTask
from fds_dist.tasks.sampled import EVALUATION_BATCH
from fds_dist.tasks.smoothing import smoothed_cross_entropy

Samples = tuple[Tensor, Tensor]
"""Images and labels."""

DATA_VARIABLE = "FDS_DIST_DATA"
"""The environment variable that names the folder of the data sets; without it that is ``data``."""


@dataclass(frozen=True)
class ImageSet:
    """One data set of torchvision: what is known of it, and how it is usually augmented."""

    name: str
    dataset: str
    """The class in ``torchvision.datasets``."""
    files: str
    """Where it lies below the root, for people."""
    side: int
    classes: int
    mean: tuple[float, ...]
    """Of each channel of the training images, with pixels in [0, 1]."""
    std: tuple[float, ...]
    crop: int = 0
    flip: bool = False

    def read(self, root: Path) -> tuple[Samples, Samples] | None:
        """The training and the test part: images uint8 [N, C, H, W] and labels int64 [N]; None where files are missing.

        Raises `UserError` for files that cannot be read.
        """
        try:
            return self._part(root, train=True), self._part(root, train=False)
        except RuntimeError:  # "Dataset not found or corrupted"
            return None
        except UserError:
            raise
        except Exception as error:  # whatever a damaged file leads to
            problem = f"{self.name} in {root} cannot be read: {type(error).__name__}: {error}"
            raise UserError(Fault("task.root", problem, "complete files; remove the damaged ones")) from error

    def fetch(self, folder: Path) -> None:
        """Downloads it into ``folder``."""
        for train in (True, False):
            self._dataset(folder, train, download=True)

    def _dataset(self, root: Path, train: bool, download: bool = False) -> Any:
        part = {"split": "train" if train else "test"} if self.dataset == "SVHN" else {"train": train}
        return getattr(import_torchvision().datasets, self.dataset)(str(root), **part, download=download)

    def _part(self, root: Path, train: bool) -> Samples:
        dataset = self._dataset(root, train)
        images = torch.as_tensor(dataset.data)
        if images.dim() == 3:
            images = images[:, None]
        elif images.shape[-1] == len(self.mean):
            images = images.permute(0, 3, 1, 2)
        labels = dataset.labels if self.dataset == "SVHN" else dataset.targets
        return images.contiguous(), torch.as_tensor(np.asarray(labels)).long()


IMAGE_SETS = (
    ImageSet("mnist", "MNIST", "MNIST/raw/", 28, 10, (0.1307,), (0.3081,)),
    ImageSet("fashion_mnist", "FashionMNIST", "FashionMNIST/raw/", 28, 10, (0.2860,), (0.3530,)),
    ImageSet(
        "svhn",
        "SVHN",
        "{train,test}_32x32.mat",
        32,
        10,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        crop=4,
    ),
    ImageSet(
        "cifar10",
        "CIFAR10",
        "cifar-10-batches-py/",
        32,
        10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        crop=4,
        flip=True,
    ),
    ImageSet(
        "cifar100",
        "CIFAR100",
        "cifar-100-python/",
        32,
        100,
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
        crop=4,
        flip=True,
    ),
)


@dataclass(frozen=True)
class Normalize:
    """Images in 0..255, [B, C, H, W], to float32 images with mean 0 and deviation 1 per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    _constants: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """Scale and shift [C, 1, 1] on each device that there were images on."""

    def __call__(self, images: Tensor) -> Tensor:
        if images.device not in self._constants:
            scale = 1 / (255 * torch.tensor(self.std))
            shift = torch.tensor(self.mean) / torch.tensor(self.std)
            scale, shift = (to_device(constant[:, None, None], images.device) for constant in (scale, shift))
            self._constants[images.device] = scale, shift
        scale, shift = self._constants[images.device]
        return images.float() * scale - shift


def image_task(images: ImageSet) -> Callable[..., TensorTask]:
    """The function behind the name of a data set."""

    @checked("task", downsample=_divisor_of(images.side))
    def task(
        *,
        seed: Seed = 0,
        root: FolderOrNone = None,
        download: Switch = False,
        batch_size: Count = 128,
        val_fraction: OpenFraction = 0.1,
        val_overlap: Switch = False,
        val_batch_size: Count = EVALUATION_BATCH,
        crop: Pixels = images.crop,
        flip: Switch = images.flip,
        cutout: Pixels = 0,
        train_size: CountOrAll = None,
        downsample: Count = 1,
        label_smoothing: Switch = False,
    ) -> TensorTask:
        """Normalized images in memory with the data set's own test part; see `TensorTask` for splits and batches.

        Args:
            root: the folder that has the files as torchvision lays them out; default: that of `DATA_VARIABLE`.
            download: whether to get the files where they are missing.
            crop, flip, cutout: random changes of training images, see `Augmentation`.
            train_size: samples for training and validation, spread evenly over the training part; default: all.
            downsample: side of the squares of pixels that are averaged into one.
            label_smoothing: whether the training loss has the hyperparameter `label_smoothing`.

        Raises `UserError` naming each option out of range, and where the files are missing or damaged.
        """
        (inputs, targets), test = _parts(images, root, download)
        chosen = evenly_spaced(len(inputs), train_size)
        made = TensorTask(
            *_averaged(inputs[chosen], targets[chosen], downsample),
            *_averaged(*test, downsample),
            batch_size=batch_size,
            val_fraction=val_fraction,
            val_overlap=val_overlap,
            val_batch_size=val_batch_size,
            seed=seed,
            prepare=Normalize(images.mean, images.std),
            augment=Augmentation(crop, flip, cutout),
            loss=smoothed_cross_entropy if label_smoothing else F.cross_entropy,
            val_loss=F.cross_entropy if label_smoothing else None,
        )
        made.draws_nothing = True  # `Normalize` does not
        made.classes = images.classes  # whatever labels a small training part has
        return made

    return task


def evenly_spaced(samples: int, size: int | None) -> Tensor:
    """``size`` of the indices below ``samples``; None: all. Raises `UserError` where that is more than there are."""
    if size is None:
        return torch.arange(samples)
    if size > samples:
        raise UserError(Fault("task.train_size", f"{size} is too large", f"at most {samples}, the training samples"))
    return torch.arange(size) * samples // size


def _divisor_of(side: int) -> WrapValidator:
    """The kind of a number that divides the side of an image."""
    return one_of([factor for factor in range(1, side + 1) if side % factor == 0])


def _parts(images: ImageSet, root: str | None, download: bool) -> tuple[Samples, Samples]:
    """The training and the test part, downloaded where they are missing and ``download`` is asked for."""
    folder = expand_path(root or os.environ.get(DATA_VARIABLE) or "data", "task.root")
    parts = images.read(folder)
    if parts is None and download:
        download_once(folder, images.name, lambda: images.read(folder) is not None, images.fetch)
        parts = images.read(folder)
    if parts is None:
        problem = f"{images.name} is not in {folder}, or not complete"
        expected = (
            f"task.download=true to get it, or task.root or the environment variable {DATA_VARIABLE} naming a folder "
            f"that has {images.files}"
        )
        raise UserError(Fault("task.root", problem, expected))
    return parts


def _averaged(images: Tensor, labels: Tensor, factor: int) -> Samples:
    """Images [N, C, H, W] as they are, or the means of squares of ``factor`` pixels, float32 [N, C, H/f, W/f]."""
    if factor == 1:
        return images, labels
    parts = [F.avg_pool2d(part.float(), factor) for part in images.split(1000)]  # bounds the float copy
    return torch.cat(parts), labels
