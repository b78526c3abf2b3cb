"""The files of a user's own code that a search runs."""

from __future__ import annotations

import sys
from pathlib import Path

from fds_dist.config import Config


def own_files(config: Config) -> list[Path]:
    """The files of the modules that the config names (`package.module:function`) and that lie below the current folder;
    all have been imported."""
    names = [config.task.name, config.inner.optimizer, config.model.name if config.model else None]
    modules = [sys.modules.get(name.partition(":")[0]) for name in names if name and ":" in name]
    files = dict.fromkeys(Path(module.__file__).resolve() for module in modules if module and module.__file__)
    return [file for file in files if file.is_relative_to(Path.cwd())]
