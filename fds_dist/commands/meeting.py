"""The ranks of a launch meet, and compare what they are about to run before any of them depends on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fds_dist.common.faults import UserError
from fds_dist.common.paths import expand_path
from fds_dist.config import Config, DistributedConfig, Draft
from fds_dist.distributed.agreement import await_files, on_all_ranks
from fds_dist.distributed.alike import require_alike
from fds_dist.distributed.company import company
from fds_dist.distributed.devices import with_gpus
from fds_dist.distributed.environment import LaunchEnvironment, read_environment
from fds_dist.storage.provenance import version_of
from fds_dist.storage.run_folder import RunFolder

MAY_DIFFER = frozenset({"tracking"})
"""The sections of the config that rank 0 alone reads. All other keys must be the same on all ranks; a folder that has
another path on each host is written with an environment variable."""


@contextmanager
def met(command: str, read: Callable[[], Config | None], source: object = None) -> Iterator[LaunchEnvironment]:
    """This rank among all of them, once all have come to run the same command of the same version. Inside, they give
    signs of life.

    Args:
        read: reads this rank's config.
        source: what it is read from; a path may be that of a config or of a run's folder.

    Raises:
        UserError: on every rank; they differ.
    """
    place = replace(read_environment(), timeout=timeout_of(read))
    with company(place):
        require_alike(place, {"command": command, "version of fds-dist": version_of("fds-dist")})
        await_files(place, _files(source))
        yield with_gpus(place)


@contextmanager
def agreed_draft(
    command: str, read: Callable[[], Draft], source: object = None
) -> Iterator[tuple[LaunchEnvironment, Draft]]:
    """The ranks that run `command`, and the config that all of them have, which each reads from `source`: see `met`.

    A draft with faults passes: they are told with those of what is built from it.

    Raises:
        UserError: on every rank; one of them has no config, or they differ.
    """
    with met(command, lambda: read().config, source) as environment:
        draft = on_all_ranks(environment, read)
        config = None if draft.faults else draft.config
        require_alike(environment, None if config is None else config_facts(config))
        require_alike(environment, None if config is None else version_facts(config))
        yield environment, draft


def _files(source: object) -> list[Path]:
    """The files that each rank reads of what a command was given."""
    if not isinstance(source, str | Path):
        return []
    path = Path(source)
    with suppress(UserError):  # which is told when the path is read
        path = expand_path(source)
    return [path, *RunFolder(path).read_by_all]


def timeout_of(read: Callable[[], Config | None]) -> float:
    """`distributed.timeout` of this rank's config, for the ranks to meet. The default where the config cannot be read,
    which they tell each other when they have met."""
    with suppress(UserError):
        if (config := read()) is not None:
            return config.distributed.timeout
    return DistributedConfig().timeout


def config_facts(config: Config) -> dict[str, Any]:
    """Every key of the resolved config that all ranks read, and the orders that count."""
    facts = {key: value for key, value in config.resolved().items() if key not in MAY_DIFFER}
    facts["order of hyperparameters"] = list(config.hyperparameters)
    facts["order of inner.groups"] = list(config.inner.groups or ())
    return facts


def version_facts(config: Config) -> dict[str, Any]:
    """The versions of what computes.

    PyTorch's may differ where ranks need not have the same bits: where `consistency.mode` is not `verify`, and between
    replicas.
    """
    facts = {"version of Python": "{}.{}".format(*sys.version_info), "version of numpy": version_of("numpy")}
    if config.consistency.mode == "verify" and config.mesh.replica == 1:
        facts["version of torch"] = version_of("torch")
    return facts
