"""Random changes of a batch of training images, on the device where the images are.

Shapes: B = batch, C = channels, H×W = pixels. Random numbers are a few per image and drawn from a CPU generator, so
that a CPU and a GPU see the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fds_dist.common.transfer import to_device


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
        return self.applied(images, to_device(self.draw(images.shape, random), images.device))

    def draw(self, shape: torch.Size, random: torch.Generator) -> Tensor:
        """The random numbers [N, B] on the CPU for images of ``shape`` [B, C, H, W]; N follows from the changes."""
        batch, height, width = shape[0], shape[-2], shape[-1]

        def below(end: int) -> Tensor:
            return torch.randint(end, (1, batch), generator=random)

        rows = [torch.empty(0, batch, dtype=torch.int64)]
        if self.crop:
            rows += [torch.randint(2 * self.crop + 1, (2, batch), generator=random)]
        if self.flip:
            rows += [below(2)]
        if self.cutout:
            rows += [below(height), below(width)]
        return torch.cat(rows)

    def applied(self, images: Tensor, numbers: Tensor) -> Tensor:
        """The images [B, C, H, W] changed by ``numbers`` [N, B] of `draw`, on their device."""
        rows = iter(numbers)
        if self.crop:
            images = cropped(images, self.crop, next(rows), next(rows))
        if self.flip:
            images = torch.where(next(rows).bool()[:, None, None, None], images.flip(-1), images)
        if self.cutout:
            images = cut_out(images, self.cutout, next(rows), next(rows))
        return images


def cropped(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """The window of H×W at ``top`` and ``left`` [B] of each image [B, C, H, W] padded with ``padding`` zeros."""
    height, width = images.shape[-2:]
    windows = F.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, top, left, H, W], a view
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def cut_out(images: Tensor, side: int, row: Tensor, column: Tensor) -> Tensor:
    """Each image [B, C, H, W] with a square of ``side`` pixels around ``row`` and ``column`` [B] set to zero.

    Its center is any pixel, so that a part of the square may lie outside the image (DeVries & Taylor, 2017, arXiv
    1708.04552).
    """

    def covered(length: int, center: Tensor) -> Tensor:
        """[B, length], along one axis."""
        offset = torch.arange(length, device=images.device) - (center[:, None] - side // 2)
        return (offset >= 0) & (offset < side)

    rows, columns = covered(images.shape[-2], row), covered(images.shape[-1], column)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)


class EpochOfChanges:
    """An `Augmentation` over the steps of one epoch, whose numbers are all drawn before the first, and sent at once.

    Args:
        randoms: step → its generator.
        steps: of the epoch.
    """

    def __init__(self, change: Augmentation, randoms: Callable[[int], torch.Generator], steps: int) -> None:
        self._change, self._randoms, self._steps = change, randoms, steps
        self._shape: torch.Size | None = None  # of all images that `_numbers` are for
        self._numbers: Sequence[Tensor] = ()

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """The images [B, C, H, W] of ``step``, changed as by the `Augmentation` with the step's generator."""
        if self._shape is None:
            self._shape = images.shape
            drawn = [self._change.draw(images.shape, self._randoms(number)) for number in range(self._steps)]
            self._numbers = to_device(torch.stack(drawn), images.device).unbind()
        if images.shape != self._shape or step >= self._steps:  # a collate function may give other batches
            return self._change(images, self._randoms(step))
        return self._change.applied(images, self._numbers[step])
