"""The `tracking:` section: where figures go in addition to the run's folder."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fds_dist.common.kinds import Seconds, Switch, Text
from fds_dist.config.sections import Section


class WandbConfig(Section):
    """Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = "disabled"
    """online sends the figures, offline writes them into the run's folder, disabled does neither."""

    project: Text = "fds-dist"
    """The project that the run belongs to."""

    entity: Text | None = None
    """The user or team that owns the project."""

    name: Text | None = None
    """The run's name in W&B; null: the name of the run's folder."""

    group: Text | None = None
    """The group that the run belongs to."""

    job_type: Text | None = None
    """The kind of run within its group."""

    tags: list[Text] = Field(default_factory=list)
    """Labels of the run."""

    scalars: Switch | None = None
    """A chart for each number of a hyperparameter, its hypergradient and its step size. true: of all hyperparameters;
    false: of those that have one number; null: of those that have at most 4. The others are in the picture of the
    schedule that each outer step draws."""

    code: Switch = False
    """Send the files of the task, model and optimizer that are one's own (`package.module:function` in the current
    folder), online runs only. Off, for such a file may hold a password."""

    init_timeout: Seconds = 30.0
    """Seconds that W&B has to answer when an online run begins. After them the run goes on offline, with a note."""


class TrackingConfig(Section):
    """Where figures go in addition to `history.jsonl`."""

    wandb: WandbConfig = WandbConfig()
    """Weights & Biases."""

    tensorboard: Switch = False
    """Write TensorBoard event files into the run's folder."""
