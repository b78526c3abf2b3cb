"""The folder of a search, and what is written there before it trains: its config, versions and machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from fds_dist.storage.provenance import environment_info
from fds_dist.storage.run_folder import RunFolder, create_run_folder

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
