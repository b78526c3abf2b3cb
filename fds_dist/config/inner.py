"""The section `inner` of the config: the training run whose hyperparameters are learned."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fds_dist.common.kinds import Clip, Count, Epochs, Name, Pattern, Steps, Switch
from fds_dist.config.sections import Section


def one_epoch_unless_told(section: Any) -> Any:
    """A section with `epochs: 1` where it has neither `epochs` nor `steps`: the horizon has one unit."""
    is_told = not isinstance(section, dict) or any(section.get(key) is not None for key in ("epochs", "steps"))
    return section if is_told else {**section, "epochs": 1.0}


class InnerConfig(Section):
    """The training run whose hyperparameters are learned."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """The inner optimizer: sgd, adam or adamw."""

    nesterov: Switch = False
    """Nesterov momentum; sgd only."""

    epochs: Epochs = None
    """The horizon in passes over the training data: a number, or a list with one per outer step; 1 where `steps` is
    left out too."""

    steps: Steps = None
    """The horizon in inner steps, in place of `epochs`: a whole number, or a list with one per outer step."""

    clip_gradient: Clip = None
    """Elementwise bound on the gradient; null: none."""

    accumulate: Count = 1
    """Micro-batches that each batch is cut into (gradient accumulation): memory falls, the gradient stays that of the
    mean over the whole batch. The loss is applied to each micro-batch, batch-norm and dropout work on each alone."""

    groups: Annotated[dict[Name, Pattern], Field(min_length=1)] | None = None
    """Parameter groups: name → regular expression, searched in the parameters' names; the first match wins."""

    _one_epoch = model_validator(mode="before")(one_epoch_unless_told)
