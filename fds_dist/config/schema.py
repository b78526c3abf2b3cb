"""The config: every key with its type, default and meaning.

The order of the fields is the order in the resolved `config.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import PrivateAttr, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from fds_dist.common import limits
from fds_dist.common.kinds import (
    Folder,
    FolderName,
    Seed,
    Text,
    show,
)
from fds_dist.common.optimizers import BUILT_IN
from fds_dist.config.compare import CompareConfig
from fds_dist.config.defaults import config_defaults
from fds_dist.config.estimators import GreedyConfig, RandomDirectionsConfig, ReverseConfig, TangentsConfig
from fds_dist.config.hyperparameters import HyperparameterConfig, Hyperparameters, hyperparameter_contradictions
from fds_dist.config.inner import InnerConfig
from fds_dist.config.optimizer import takes_nesterov
from fds_dist.config.outer import OuterConfig
from fds_dist.config.ranks import CheckpointConfig, ConsistencyConfig, DistributedConfig, MeshConfig
from fds_dist.config.references import KeyPath, Written, put_back, values_at
from fds_dist.config.sections import Contradiction, FunctionConfig, Section, refuse
from fds_dist.config.tracking import TrackingConfig


class TaskConfig(FunctionConfig):
    """The data and the loss."""

    name: Text
    """A built-in name, or `package.module:function`."""


class ModelConfig(FunctionConfig):
    """The network that is trained.

    `init` says which weights it starts from. A network of one's own (of the task, from Python or by
    `package.module:function`): keep, the weights that it comes with, or redraw, new ones for every outer step.

    The keys below are for any network; a function that has a parameter of such a name gets the key's value instead.
    """

    MEANINGFUL_ABSENCE = frozenset({"weights", "weights_except", "freeze"})

    name: Text | None = None
    """A built-in name, or `package.module:function`; null: the task's own, or that from Python."""

    weights: Any = None
    """A safetensors file with a `state_dict`, from which every outer step starts.

    `~` and `$VARIABLES` are filled in.
    """

    weights_except: Any = None
    """A regular expression, searched in the names: what it matches (a new head) is not taken from that file."""

    freeze: Any = None
    """A regular expression, searched in the names: parameters and running statistics that it matches are frozen."""

    @property
    def fine_tuning(self) -> dict[str, Any]:
        """The keys for any network that are there."""
        return {key: getattr(self, key) for key in sorted(self.MEANINGFUL_ABSENCE & self.model_fields_set)}

    @model_validator(mode="after")
    def _options_have_a_name(self) -> ModelConfig:
        if self.name is None and not (set(self.options) <= {"init"} and (self.options or self.fine_tuning)):
            details = InitErrorDetails(type="missing", loc=("name",), input=self.options)
            raise ValidationError.from_exception_data("model", [details])
        return self


class Config(Section):
    """A whole run."""

    task: TaskConfig
    """The task, and its options."""

    model: ModelConfig | None = None
    """The network, and its options; null: the task's own."""

    inner: InnerConfig = InnerConfig()
    """The training run whose hyperparameters are learned."""

    hyperparameters: Hyperparameters
    """Name → a number (fixed) or a mapping (learned). Names unknown to the inner optimizer belong to the loss."""

    outer: OuterConfig = OuterConfig()
    """How hypergradients move the hyperparameters."""

    estimator: Literal["forward", "reverse", "auto", "greedy", "random_directions"] = "forward"
    """How hypergradients are computed: forward mode with sharing (FDS), reverse mode, auto (the cheaper of these two),
    greedily step by step, or without bias from fewer tangents than learned numbers, along random directions."""

    reverse: ReverseConfig = ReverseConfig()
    """Settings of the estimator reverse."""

    greedy: GreedyConfig = GreedyConfig()
    """Settings of the estimator greedy."""

    random_directions: RandomDirectionsConfig = RandomDirectionsConfig()
    """Settings of the estimator random_directions."""

    tangents: TangentsConfig = TangentsConfig()
    """How forward-mode tangents are computed."""

    mesh: MeshConfig = MeshConfig()
    """Ranks along each parallel axis."""

    distributed: DistributedConfig = DistributedConfig()
    """How ranks wait for each other."""

    consistency: ConsistencyConfig = ConsistencyConfig()
    """The check that ranks hold the same bits."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save the state of a run."""

    tracking: TrackingConfig = TrackingConfig()
    """Where figures go in addition to `history.jsonl`."""

    compare: CompareConfig = CompareConfig()
    """Settings of `fds-dist compare`."""

    dtype: Literal["float32", "float64"] = "float32"
    """Precision of weights, data and tangents."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: GPUs, if each rank can have one of its own."""

    precision: Literal["ieee", "tf32"] = "ieee"
    """Of float32 convolutions and matrix products on GPUs: ieee, or tf32, which is faster and keeps 11 of 24 bits.
    `retrain` trains with it, too; what `export` writes leaves it to PyTorch's own setting."""

    output_dir: Folder = "runs"
    """The folder that holds the runs' folders; `~` and `$VARIABLES` are filled in."""

    name: FolderName | None = None
    """The name of the run's folder; null: made from task, model and time."""

    seed: Seed = 0
    """The seed from which every random number of the run is derived."""

    _written: Written = PrivateAttr(default_factory=dict)

    def resolved(self) -> dict[str, Any]:
        """See `Section`; a text with a reference such as `${env:NAME}` is as the user wrote it."""
        return put_back(super().resolved(), self._written)

    def with_references(self, texts: Mapping[KeyPath, str]) -> Config:
        """The config, which knows how the texts at these places were written before their references were filled in."""
        config = self.model_copy()
        config._written = values_at(super().resolved(), texts)
        return config

    @model_validator(mode="before")
    @classmethod
    def _of_its_rule(cls, config: Any) -> Any:
        """The config with those defaults of learned hyperparameters that depend on other sections."""
        return config_defaults(config) if isinstance(config, dict) else config

    @model_validator(mode="after")
    def _no_contradictions(self) -> Config:
        refuse(config_contradictions(self))
        return self


NO_TANGENT_PER_ELEMENT = {
    "reverse": "reverse, which has no tangents",
    "random_directions": "random_directions, whose tangents belong to no bucket",
}
"""Estimators without a tangent per learned number → their name, and why settings of such tangents do nothing."""


def config_contradictions(config: Config) -> Iterator[Contradiction]:
    """Values of one config that are valid alone but not together."""
    yield from _horizon_contradictions(config)
    if config.inner.nesterov and not takes_nesterov(config.inner.optimizer):
        problem = f"{config.inner.optimizer_name} has no such switch, or it is off there"
        yield Contradiction(("inner", "nesterov"), problem, "false, or inner.optimizer: sgd", ("inner.optimizer",))
    facts = BUILT_IN.get(config.inner.optimizer_name)
    if facts and facts.averages and config.inner.ema is not None:
        problem = f"{config.inner.ema:g} is an average beside the one that {config.inner.optimizer_name} keeps"
        yield Contradiction(("inner", "ema"), problem, "null, or another inner.optimizer", ("inner.optimizer",))
    if config.inner.precision and config.dtype != "float32":
        problem = f"{config.inner.precision} has no effect on {config.dtype}"
        yield Contradiction(("inner", "precision"), problem, "null, or dtype: float32", ("dtype",))
    if config.precision == "tf32" and config.dtype != "float32":
        yield Contradiction(
            ("precision",), f"tf32 has no effect on {config.dtype}", "ieee, or dtype: float32", ("dtype",)
        )
    if config.estimator in NO_TANGENT_PER_ELEMENT:
        prune = config.tangents.prune
        if config.tangents.method == "difference":
            problem = "difference has no effect with estimator reverse, which needs second derivatives"
            yield Contradiction(("tangents", "method"), problem, "auto, or estimator: forward", ("estimator",))
        for path, value in ((("clip_hvp",), config.tangents.clip_hvp), (("prune", "ratio"), prune.ratio)):
            if value:
                problem = f"{value:g} has no effect with estimator {NO_TANGENT_PER_ELEMENT[config.estimator]}"
                yield Contradiction(("tangents", *path), problem, "leave it out", ("estimator",))
    groups = tuple(config.inner.groups or ())
    yield from _size_contradictions(config)
    for name, entry in config.hyperparameters.items():
        for contradiction in hyperparameter_contradictions(name, entry, groups):
            yield contradiction._replace(path=("hyperparameters", name, *contradiction.path))


def _size_contradictions(config: Config) -> Iterator[Contradiction]:
    """More learned numbers than any search can have; told before there is an object for each."""
    learned = 0
    for name, entry in config.hyperparameters.items():
        if isinstance(entry, HyperparameterConfig):
            copies = len(config.inner.groups or ()) or 1 if entry.per_group else 1
            learned += entry.buckets * entry.size * copies
            if learned > limits.LEARNED:
                problem = f"with {name} there would be {learned:,} learned numbers"
                yield Contradiction(("hyperparameters", name), problem, f"at most {limits.LEARNED:,} in all")
                return


def _horizon_contradictions(config: Config) -> Iterator[Contradiction]:
    lengths, outer_steps = {"epochs": config.inner.epochs, "steps": config.inner.steps}, config.outer.steps
    for key, length in lengths.items():
        if isinstance(length, list) and len(length) != outer_steps:
            problem = f"{show(length)} has {len(length)} entries for {outer_steps} outer steps"
            expected = f"one number, or as many as outer.steps ({outer_steps})"
            yield Contradiction(("inner", key), problem, expected, ("outer.steps",))
    if None not in lengths.values():
        problem = f"{show(lengths['steps'])} and inner.epochs={show(lengths['epochs'])} exclude each other"
        yield Contradiction(("inner", "steps"), problem, "one of the two, and null for the other", ("inner.epochs",))
