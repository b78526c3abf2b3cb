"""Random changes of a batch of training images, on the device where the images are.

Shapes: B = batch, C = channels, H×W = pixels. Random numbers are a few per image and drawn from a CPU generator, so
that a CPU and a GPU see the same images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Crop, flip and cutout, in this order; a function of the images [B, C, H, W] and the generator's state."""

    crop: int = 0
    """Pixels of padding on each side; 0 for none."""

    flip: bool = False
    """Whether half of the images are mirrored."""

    cutout: int = 0
    """Side of the square that is blanked, in pixels; 0 for none."""

    def __call__(self, images: Tensor, random: torch.Generator) -> Tensor:
        if self.crop:
            images = random_crop(images, self.crop, random)
        if self.flip:
            images = random_flip(images, random)
        if self.cutout:
            images = random_cutout(images, self.cutout, random)
        return images


def random_crop(images: Tensor, padding: int, random: torch.Generator) -> Tensor:
    """A window of H×W somewhere in each image [B, C, H, W] padded with ``padding`` zeros on each side."""
    height, width = images.shape[-2:]
    top, left = torch.randint(2 * padding + 1, (2, len(images)), generator=random).to(images.device)  # [B] each
    windows = F.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, top, left, H, W], a view
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def random_flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Each image [B, C, H, W] mirrored left to right with probability ½."""
    flipped = torch.randint(2, (len(images), 1, 1, 1), generator=random).bool().to(images.device)
    return torch.where(flipped, images.flip(-1), images)


def random_cutout(images: Tensor, side: int, random: torch.Generator) -> Tensor:
    """Each image [B, C, H, W] with a square of ``side`` pixels set to zero.

    Its center is any pixel, so that a part of the square may lie outside the image (DeVries & Taylor, 2017, arXiv
    1708.04552).
    """

    def covered(length: int) -> Tensor:
        """[B, length], along one axis."""
        start = torch.randint(length, (len(images), 1), generator=random) - side // 2
        offset = torch.arange(length) - start
        return ((offset >= 0) & (offset < side)).to(images.device)

    rows, columns = covered(images.shape[-2]), covered(images.shape[-1])
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)
