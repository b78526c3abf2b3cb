"""The section `inner` of the config: the training run whose hyperparameters are learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fds_dist.common.kinds import Clip, Epochs, Name, Pattern, Switch
from fds_dist.config.sections import Section


class InnerConfig(Section):
    """The training run whose hyperparameters are learned."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The inner optimizer: sgd, adam or adamw."""

    nesterov: Switch = False
    """Nesterov momentum; sgd only."""

    epochs: Epochs = 1.0
    """The horizon in passes over the training data: a number, or a list with one per outer step."""

    clip_gradient: Clip = None
    """Elementwise bound on the gradient; null: none."""

    groups: Annotated[dict[Name, Pattern], Field(min_length=1)] | None = None
    """Parameter groups: name → regular expression, searched in the parameters' names; the first match wins."""
