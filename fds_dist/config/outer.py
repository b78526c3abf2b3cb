"""The section `outer` of the config: how hypergradients move the hyperparameters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from fds_dist.common.kinds import (
    Count,
    NonNegative,
    NumberOrNull,
    OpenFraction,
    Ratio,
    Runs,
    SecondsOrNull,
    Switch,
    Whole,
)
from fds_dist.config.defaults import AVERAGE, STEPS, outer_defaults
from fds_dist.config.sections import Section


class OuterConfig(Section):
    """How hypergradients move the hyperparameters.

    `optimizer: sign` brings the paper's defaults: linear scales, constant shapes, no retreat, no average, no judging.
    """

    DEPENDENT = frozenset({"retreat", "average", "judge_seeds"})

    optimizer: Literal["sign", "rprop", "sgd", "adam"] = "adam"
    """The outer optimizer: sign (the paper's: fixed steps against the sign of each hypergradient), rprop, sgd, adam."""

    steps: Runs = STEPS
    """Outer steps, i.e. inner runs from fresh weights."""

    step_decay: OpenFraction | None = None
    """Factor on an element's step: at each change of sign (sign, rprop), or after each outer step (sgd, adam).

    null: 0.5 for sign and rprop, 0.8 for sgd and adam.
    """

    momentum: Ratio = 0.0
    """Momentum of the outer optimizer sgd."""

    beta1: Ratio = 0.0
    """Decay of the running mean in the outer optimizer adam."""

    beta2: Ratio = 0.9
    """Decay of the running mean square in the outer optimizer adam."""

    retreat: Switch = True
    """Return to the best values, with half the steps, when an inner run ends worse than the first one, and by more than
    a quarter worse than the best. Default: true; false with `optimizer: sign`."""

    average: Runs = AVERAGE
    """The mean of the last so many values, on the scale of each hyperparameter, joins the candidates for the result; 1:
    it does not. Default: 4, or `steps` where they are fewer; 1 with `optimizer: sign`."""

    judge_seeds: Whole = 3
    """Fresh seeds on which the candidates (average, best, last) and the start are trained by plain runs at the end of
    the search; the one with the lowest mean validation loss is the result. 0: nothing is judged, and the result is the
    average, or with `average: 1` the last values. Default: 3; 0 with `optimizer: sign`."""

    tolerance: NonNegative = 0.05
    """Stop when every step is below this fraction of its value."""

    timeout: SecondsOrNull = None
    """Begin no further outer step once the outer steps have taken this many seconds, earlier starts included.

    A search that the timeout has ended goes on with --resume, for as long again. null: no limit.
    """

    target: NumberOrNull = None
    """Stop after the first outer step whose validation loss is at or below this number; null: there is none."""

    nonfinite_patience: Count = 3
    """End the run with an error after this many outer steps in a row with a non-finite hypergradient."""

    val_batch_norm: Literal["batch", "running"] = "batch"
    """Batch-norm statistics in the validation gradient: those of the batch, or the running averages.

    A batch-norm that rests in evaluation mode while the network trains (a frozen one) uses its running averages alone.
    """

    @model_validator(mode="before")
    @classmethod
    def _of_its_rule(cls, section: Any) -> Any:
        """The section with those defaults that depend on other keys."""
        return outer_defaults(section) if isinstance(section, dict) else section
