"""Folders of image files, one folder per class, streamed through worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Count, CountOrAll, Folder, OpenFraction, Pixels, Seed, Side, Switch, Whole
from fds_dist.common.options import checked
from fds_dist.common.paths import expand_path
from fds_dist.common.vision import import_torchvision
from fds_dist.tasks.augmentation import Augmentation
from fds_dist.tasks.images import Normalize, evenly_spaced
from fds_dist.tasks.sampled import EVALUATION_BATCH, SampledTask
from fds_dist.tasks.sources import StreamSource, UnreadableSample

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@checked("task")
def imagefolder(
    *,
    root: Folder,
    seed: Seed = 0,
    size: Side = 224,
    batch_size: Count = 128,
    val_fraction: OpenFraction = 0.1,
    val_overlap: Switch = False,
    val_batch_size: Count = EVALUATION_BATCH,
    crop: Pixels = 0,
    flip: Switch = True,
    cutout: Pixels = 0,
    train_size: CountOrAll = None,
    workers: Whole = 4,
) -> SampledTask:
    """Color images below ``root``: ``train/CLASS/…``, and ``val/CLASS/…`` and ``test/CLASS/…`` where there are such.

    Without ``val`` the validation part is drawn from ``train``, see `SampledTask`. The others are ``train`` again in
    their class folders. Images are scaled and cut around their centers to ``size``×``size`` pixels by ``workers``
    processes, and normalized with ImageNet's statistics; ``crop``, ``flip``, ``cutout`` and ``train_size`` are as in
    the other image tasks (`fds_dist.tasks.images.image_task`).

    Raises `UserError` naming each option out of range and each folder that is missing or has other classes.
    """
    parts = _parts(expand_path(root, "task.root"))
    classes = len(parts["train"].classes)
    samples = {name: part.samples for name, part in parts.items()}
    samples["train"] = [samples["train"][index] for index in evenly_spaced(len(samples["train"]), train_size)]
    sources = {name: StreamSource(_Files(files, size), workers) for name, files in samples.items()}
    task = SampledTask(
        sources["train"],
        sources.get("val"),
        sources.get("test"),
        batch_size=batch_size,
        val_fraction=val_fraction,
        val_overlap=val_overlap,
        val_batch_size=val_batch_size,
        seed=seed,
        prepare=Normalize(IMAGENET_MEAN, IMAGENET_STD),
        augment=Augmentation(crop, flip, cutout),
    )
    task.input_shape, task.classes = (3, size, size), classes
    return task


@dataclass(frozen=True)
class _Files(Dataset[tuple[Tensor, int]]):
    """Images as uint8 [3, size, size], read when they are asked for."""

    samples: list[tuple[str, int]]
    size: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image, ImageOps

        path, label = self.samples[index]
        try:
            with Image.open(path) as image:
                fitted = ImageOps.fit(image.convert("RGB"), (self.size, self.size), Image.Resampling.BILINEAR)
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises for a damaged file
            raise UnreadableSample(f"{path} cannot be read: {error}") from None
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1), label


def _parts(root: Path) -> dict[str, Any]:
    """torchvision's listings of the images in ``train`` and, where there are such folders, ``val`` and ``test``.

    Raises `UserError` where one of them has other classes than ``train``.
    """
    names = ["train", *(name for name in ("val", "test") if (root / name).is_dir())]
    parts = {name: _listed(root / name) for name in names}
    faults = []
    for part in parts.values():
        if odd := sorted(set(part.classes) ^ set(parts["train"].classes)):
            problem = f"{part.root} has other classes than train: {', '.join(odd[:5])}"
            faults.append(Fault("task.root", problem, "the same class folders"))
    if faults:
        raise UserError(faults)
    return parts


def _listed(folder: Path) -> Any:
    """torchvision's listing of the images in ``folder``, by class."""
    try:
        return import_torchvision().datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        expected = "a folder train/ with a folder of images for each class"
        raise UserError(Fault("task.root", " ".join(str(error).split()), expected)) from error
