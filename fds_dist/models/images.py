"""The shape check that all convolutional networks share."""

from __future__ import annotations

from collections.abc import Sequence

from fds_dist.faults import Fault, UserError


def image_shape(input_shape: Sequence[int], smallest_side: int) -> tuple[int, int, int]:
    """``input_shape`` as (channels, height, width). Raises `UserError` where it is no image or one too small."""
    expected = f"channels × height × width with sides of at least {smallest_side}"
    shape = tuple(input_shape)
    if len(shape) != 3 or min(shape[1:]) < smallest_side:
        raise UserError(Fault("model.input_shape", f"{'×'.join(map(str, shape))} does not fit this model", expected))
    return shape
