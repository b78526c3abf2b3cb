"""The `compare:` section: which methods compete, over which ranges, on which budget."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from fds_dist.common.kinds import Name, Number, Positive, Runs, Whole, fault, read_by, show, wrong_kind
from fds_dist.config.sections import Section

MethodName = Literal[
    "fds",
    "greedy",
    "cosine",
    "linear",
    "refined",
    "schedule_free",
    "cosine_buckets",
    "random",
    "tpe",
    "hyperband",
    "bohb",
]


def _distinct(methods: list[str]) -> list[str]:
    if len(set(methods)) < len(methods):
        raise fault(f"{show(methods)} names a method twice", "each method once")
    return methods


def _search_range(value: Any) -> list[float]:
    expected = "two numbers, [low, high]"
    if not isinstance(value, list):
        raise fault(wrong_kind(value), expected)
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in value)
    if len(value) != 2 or not numbers or not float("-inf") < value[0] < value[1] < float("inf"):
        raise fault(f"{show(value)} is not valid", f"{expected}, with low below high")
    return [float(end) for end in value]


SearchRange = Annotated[list[Number], Field(min_length=2, max_length=2), read_by(_search_range)]


class CompareConfig(Section):
    """Settings of `fds-dist compare`: FDS and its rivals at equal compute."""

    methods: Annotated[
        list[MethodName], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(_distinct)
    ] = Field(default_factory=lambda: ["fds", "greedy", "cosine", "linear", "random", "tpe", "hyperband"])
    """fds and greedy follow hypergradients. All others see only losses. cosine and linear are a warm-up and a smooth
    decay to zero with constants for the rest, tuned by tpe; refined has the decay that follows from one run's gradient
    norms (Defazio et al. 2023); schedule_free is SGD or AdamW of the package schedulefree, also tuned by tpe.
    cosine_buckets is a cosine in the buckets of the config. random, tpe, hyperband and bohb (tpe with hyperband)
    search every bucket."""

    budget: Positive | None = None
    """Compute of each method in plain training steps; null: the cost of the outer steps of fds."""

    seeds: Runs = 3
    """Repetitions of the whole comparison, with other weights, splits, batches and suggestions."""

    judge_seeds: Runs = 3
    """Fresh training runs by which each method's best values so far are judged."""

    retrain_seeds: Whole = 0
    """Trainings on all training data with each method's answer, for its test accuracy; 0: use the judges' runs."""

    ranges: dict[Name, SearchRange] = Field(default_factory=dict)
    """Name → [low, high] for the black boxes; left out: the hyperparameter's bounds, or a customary range. `warmup` is
    the warm-up's share of the horizon."""

    scale: Literal["log", "linear"] = "log"
    """How black boxes search: evenly in the logarithm (in log(1 - x) for momentum and betas) if the range has one, or
    evenly in the value."""
