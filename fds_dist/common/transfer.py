"""The way of tensors to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device`, in `dtype` where it is given; the tensor itself where it is so already.

    The host never waits for the copy to a GPU. It goes through pinned memory, which PyTorch keeps until the copy is
    done, and the dtype changes on the device: changed on the host it would be in memory that is not pinned.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, tensor.dtype if dtype is None else dtype)
