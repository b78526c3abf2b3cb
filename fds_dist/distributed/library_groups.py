"""Process groups that a library makes for itself: they get the timeout of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed import distributed_c10d

from fds_dist.distributed.environment import LaunchEnvironment

# DeepSpeed passes no timeout to PyTorch, which takes 30 minutes then, and offers no public way to change it.
_world: Any = getattr(distributed_c10d, "_world")  # noqa: B009
_set_timeout: Any = getattr(distributed_c10d, "_set_pg_timeout")  # noqa: B009


@contextmanager
def groups_of_libraries(environment: LaunchEnvironment) -> Iterator[None]:
    """Each process group that is made inside waits for `distributed.timeout`; those before it stay as they are."""
    before = set(_world.pg_map)
    yield
    for group in set(_world.pg_map) - before:
        _set_timeout(environment.patience, group)
