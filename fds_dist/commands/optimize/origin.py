"""The folder of a search, and what is written there before it trains: its config, versions and machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from fds_dist.build import Build, weights_file
from fds_dist.common.files import OWNER_ONLY, write_text_atomic
from fds_dist.common.secrets import hide_in_text
from fds_dist.config import dump_config
from fds_dist.distributed.launchers import launcher_process
from fds_dist.distributed.mesh import Ranks
from fds_dist.storage.lock import locked
from fds_dist.storage.provenance import environment_info
from fds_dist.storage.run_folder import RunFolder, create_run_folder, folder_of_launch

_searches = count()


@dataclass(frozen=True)
class Launch:
    """Who has started a search, so that ranks that are started again find its folder."""

    search: int
    """The number of the search in its process."""
    launchers: Sequence[str]
    """The processes that started the ranks."""


def launch_of_search(ranks: Ranks) -> Launch:
    """Of a search that begins now; all ranks call this alike."""
    launchers = {name for name in ranks.gather_objects(launcher_process()) if name}
    return Launch(next(_searches), sorted(launchers))


@dataclass(frozen=True)
class Place:
    """Where a search is at work."""

    folder: RunFolder
    launch: Launch
    resumed: bool
    """Whether the folder holds an earlier start of this search."""


@contextmanager
def search_place(built: Build, ranks: Ranks, resume: Path | None, model_name: str | None) -> Iterator[Place]:
    """The place of a search, locked: the folder of the run to `resume`, or a new one.

    If torchrun restarts its ranks after one was lost, the search continues in the folder that it had before.

    Raises:
        UserError: the folder cannot be made, or another command is at work in it.
    """
    launch = launch_of_search(ranks)
    resume = ranks.on_first(lambda: resume or folder_of_launch(built.config.output_dir, **asdict(launch)))
    path = resume or ranks.on_first(lambda: new_folder(built, model_name))
    with locked(path, "fds-dist optimize", "output_dir" if resume is None else "--resume", ranks):
        yield Place(RunFolder(path), launch, resume is not None)


def new_folder(built: Build, model_name: str | None) -> Path:
    """The folder of a new run; the name of a model that was handed in comes before the config's."""
    config = built.config
    model = model_name or (config.model.name if config.model else None)
    return create_run_folder(config.output_dir, config.name, config.task.name, model, datetime.now())


def write_origin(folder: RunFolder, built: Build, ranks: Ranks, launch: Launch) -> None:
    """Writes the resolved config, and the versions and the machine of this start."""
    write_text_atomic(folder.config, dump_config(built.config), OWNER_ONLY)
    info: dict[str, Any] = environment_info(ranks.world_size, str(built.problem.device))
    info["weights"] = built.problem.network(0).layout.size
    info["steps_per_epoch"] = built.problem.task.steps_per_epoch
    if (file := weights_file(built.problem.build_model)) is not None:
        info["weights_file"] = {"path": hide_in_text(str(file.path)), "sha256": file.digest}
    info["launch"] = asdict(launch)
    if built.choice is not None:
        info["estimator"] = {"asked": "auto", **asdict(built.choice)}
    write_text_atomic(folder.environment, json.dumps(info, indent=2) + "\n")
