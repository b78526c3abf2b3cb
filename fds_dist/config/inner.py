"""The section `inner` of the config: the training run whose hyperparameters are learned."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fds_dist.common.kinds import Clip, Count, Decay, Epochs, Name, Pattern, Steps, Switch
from fds_dist.config.optimizer import Optimizer, OptimizerConfig
from fds_dist.config.sections import Section


def one_epoch_unless_told(section: Any) -> Any:
    """A section with `epochs: 1` where it has neither `epochs` nor `steps`: the horizon has one unit."""
    is_told = not isinstance(section, dict) or any(section.get(key) is not None for key in ("epochs", "steps"))
    return section if is_told else {**section, "epochs": 1.0}


class InnerConfig(Section):
    """The training run whose hyperparameters are learned."""

    DEPENDENT = frozenset({"epochs"})

    optimizer: Optimizer = "sgd"
    """The inner optimizer: a built-in name, `package.module:Name`, or a mapping with the name and further keys, which
    are the switches of a built-in one or the arguments of one's own."""

    nesterov: Switch = False
    """Nesterov momentum; short for `optimizer: {name: sgd, nesterov: true}`."""

    epochs: Epochs = None
    """The horizon in passes over the training data: a number, or a list with one per outer step; 1 where `steps` is
    left out too."""

    steps: Steps = None
    """The horizon in inner steps, in place of `epochs`: a whole number, or a list with one per outer step."""

    clip_gradient: Clip = None
    """Elementwise bound on the gradient; null: none."""

    clip_norm: Clip = None
    """Bound on the Euclidean norm of the whole gradient, as `torch.nn.utils.clip_grad_norm_`, after `clip_gradient`;
    null: none."""

    ema: Decay = None
    """Decay of an exponential moving average of the weights, which then is what is validated and tested; null: none."""

    accumulate: Count = 1
    """Micro-batches that each batch is cut into (gradient accumulation): memory falls, the gradient stays that of the
    mean over the whole batch. The loss is applied to each micro-batch, batch-norm and dropout work on each alone. With
    `estimator: reverse` memory does not fall: its backward pass holds the graphs of all micro-batches of one step."""

    precision: Literal["fp32", "bf16"] | None = None
    """bf16: forward passes and losses, training's and validation's, run under `torch.autocast`, and losses get float32
    outputs; weights, optimizer state and tangents stay float32. fp32 or null: all is computed in `dtype`."""

    groups: Annotated[dict[Name, Pattern], Field(min_length=1)] | None = None
    """Parameter groups: name → regular expression, searched in the parameters' names; the first match wins."""

    _one_epoch = model_validator(mode="before")(one_epoch_unless_told)

    @property
    def optimizer_name(self) -> str:
        """The name of the inner optimizer."""
        return self.optimizer.name if isinstance(self.optimizer, OptimizerConfig) else self.optimizer

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """Its switches or arguments, as far as they are given."""
        options = self.optimizer.options if isinstance(self.optimizer, OptimizerConfig) else {}
        return {"nesterov": True, **options} if self.nesterov else options
