"""A function of tensors as one CUDA graph: the host starts all of its kernels with one call.

A CUDA graph reads and writes the same memory in every replay. So arguments are copied to places of its own, and results
out of them. Random numbers follow PyTorch's generator: its seed and its offset are read before each replay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fds_dist.tangents.compiled.graph import Flat

WARM_UP = 3
"""Calls before the capture: libraries choose kernels and take workspace in the first ones."""


class Captured:
    """`function` of tensors of the shapes of `examples`, on their GPU.

    Raises:
        Exception: it waits for the GPU, or does what else a capture forbids.
    """

    def __init__(self, function: Flat, examples: Sequence[Tensor]) -> None:
        self._arguments = [tensor.detach().clone() for tensor in examples]
        device = self._arguments[0].device
        with torch.no_grad(), torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    function(*self._arguments)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads, such as those that pin batches or watch NCCL, may go on meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._results = list(function(*self._arguments))

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The results in fresh tensors, which the next call does not overwrite."""
        with torch.no_grad():
            torch._foreach_copy_(self._arguments, list(tensors))  # type: ignore[reportPrivateImportUsage]
            self._graph.replay()
            results = [torch.empty_like(tensor) for tensor in self._results]
            torch._foreach_copy_(results, self._results)  # type: ignore[reportPrivateImportUsage]
        return results
