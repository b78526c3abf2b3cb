"""A lack of memory, whoever noticed it, as one error that tells the rank, what was asked for and the ways out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

WAYS_OUT = (
    "expected a smaller tangents.chunk_size, a larger inner.accumulate or mesh.data, or model.checkpointing "
    "(`fds-dist check` tells what each rank needs)"
)

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
"""In the messages of PyTorch's allocators and of the libraries below it, which raise a plain RuntimeError."""


class OutOfMemory(RuntimeError):
    """A rank could not get the memory that it asked for."""

    def __init__(self, text: str, rank: int | None = None) -> None:
        """`text`: what was asked for, and the ways out; `rank`: which one of several ran out."""
        self.text, self.rank = text, rank
        super().__init__(f"the device is {text}" if rank is None else f"rank {rank} ended: {text}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of PyTorch, NumPy or Python raised it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without its import
        return True
    is_plain = isinstance(error, RuntimeError) and not type(error).__module__.startswith("fds_dist")
    return is_plain and any(sign in str(error) for sign in _SIGNS)


def request_of(error: BaseException) -> str:
    """`out of memory (Tried to allocate 2 GiB)`"""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    line = re.sub(r"^\[enforce fail at [^]]*\] .*?\. (?=DefaultCPUAllocator)", "", line)
    return f"out of memory ({line})"


def memory_text(error: BaseException) -> str:
    """`out of memory (Tried to allocate 2 GiB); expected a smaller …`"""
    return f"{request_of(error)}; {WAYS_OUT}"


@contextmanager
def memory_told(rank: int | None) -> Iterator[None]:
    """Inside, a lack of memory is raised as what a person should know of it.

    Args:
        rank: of this process; None where it is alone.

    Raises:
        OutOfMemory: this process lacks memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(memory_text(error), rank) from error
