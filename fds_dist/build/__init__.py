"""From a config to objects: the only place where this happens."""

from __future__ import annotations

from fds_dist.build.choice import as_before, settled
from fds_dist.build.model import ModelBuilder, model_builder, weights_file
from fds_dist.build.run import Build, build

__all__ = ["Build", "ModelBuilder", "as_before", "build", "model_builder", "settled", "weights_file"]
