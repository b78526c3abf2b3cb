"""The config: every key with its type, default and meaning.

The order of the fields is the order in the resolved `config.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from fds_dist.common.kinds import (
    AutoCount,
    Clip,
    Count,
    Epochs,
    Folder,
    FolderName,
    Name,
    NonNegative,
    OpenFraction,
    Pattern,
    Positive,
    Ratio,
    Seed,
    Switch,
    Text,
    UnitInterval,
    show,
)
from fds_dist.config.compare import CompareConfig
from fds_dist.config.hyperparameters import Hyperparameters, hyperparameter_contradictions
from fds_dist.config.sections import Contradiction, Section, option_contradictions, refuse
from fds_dist.config.tracking import TrackingConfig


class FunctionConfig(Section):
    """A function by its name, with its keyword arguments as further keys."""

    model_config = ConfigDict(extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        """The other keys: the function's keyword arguments."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _options_are_plain(self) -> FunctionConfig:
        refuse(option_contradictions((), self.options))
        return self


class TaskConfig(FunctionConfig):
    """The data and the loss."""

    name: Text
    """A built-in name, or `package.module:function`."""


class ModelConfig(FunctionConfig):
    """The network that is trained.

    `init` says which weights it starts from. A network of one's own (of the task, from Python or by
    `package.module:function`): keep, the weights that it comes with, or redraw, new ones for every outer step.
    """

    name: Text | None = None
    """A built-in name, or `package.module:function`; null: the task's own, or that from Python."""

    @model_validator(mode="after")
    def _options_have_a_name(self) -> ModelConfig:
        if self.name is None and set(self.options) != {"init"}:
            details = InitErrorDetails(type="missing", loc=("name",), input=self.options)
            raise ValidationError.from_exception_data("model", [details])
        return self


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


class OuterConfig(Section):
    """How hypergradients move the hyperparameters."""

    optimizer: Literal["sign", "rprop", "sgd", "adam"] = "sign"
    """The outer optimizer: sign (the paper's: fixed steps against the sign of each hypergradient), rprop, sgd, adam."""

    steps: Count = 3
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

    retreat: Switch = False
    """Return to the best values, with half the steps, when an inner run ends worse than the first one."""

    tolerance: NonNegative = 0.05
    """Stop when every step is below this fraction of its value."""

    nonfinite_patience: Count = 3
    """End the run with an error after this many outer steps in a row with a non-finite hypergradient."""

    val_batch_norm: Literal["batch", "running"] = "batch"
    """Batch-norm statistics in the validation gradient: those of the batch, or the running averages."""


class PruneConfig(Section):
    """Steps that leave a tangent unchanged, counted within the window of its bucket."""

    mode: Literal["alternate", "truncate"] = "alternate"
    """alternate computes the first step of each period; truncate skips the first part of each window."""

    ratio: Ratio = 0.0
    """The fraction of steps that is skipped."""


class TangentsConfig(Section):
    """How forward-mode tangents are computed."""

    method: Literal["auto", "jvp", "double_backward"] = "auto"
    """How Hessian-vector products are computed; auto chooses the cheapest method that works here."""

    clip_hvp: Clip = None
    """Elementwise bound on Hessian-vector products; null: none."""

    prune: PruneConfig = PruneConfig()
    """Tangent updates to skip."""

    chunk_size: AutoCount = "auto"
    """Tangents per batched Hessian-vector product."""


class GreedyConfig(Section):
    """Settings of the estimator greedy."""

    discount: UnitInterval = 0.0
    """The share of a tangent that is kept from step to step: 0 hypergradient descent, 1 RTHO, in between MARTHE."""


class MeshConfig(Section):
    """Ranks along each parallel axis."""

    tangent: AutoCount = "auto"
    """Ranks that share out the tangents; auto: all ranks that the other axes leave."""

    data: Count = 1
    """Ranks that share out each batch."""

    replica: Count = 1
    """Independent inner runs whose hypergradients are averaged."""

    batch_norm: Literal["whole", "part"] = "whole"
    """Batch statistics of batch-norm along the data axis: those of the whole batch, or of each rank's part."""


class ConsistencyConfig(Section):
    """Checks that ranks hold the same bits, and that an inner run equals plain PyTorch."""

    mode: Literal["verify", "broadcast", "off"] = "verify"
    """verify compares fingerprints of the weights, broadcast copies the weights of rank 0, off does neither."""

    every: Count = 100
    """Inner steps from one comparison or copy to the next."""

    witness: Literal["on", "off"] = "on"
    """Before training, compare a few steps with the same module, data and loss in plain PyTorch."""


class CheckpointConfig(Section):
    """When to save the state of a run, in addition to every outer step."""

    every_seconds: Positive = 600.0
    """Seconds between two checkpoints (weights, optimizer state, all tangents) within an outer step, for the estimator
    `forward` without replicas. Ranks that share out tangents check the time every `consistency.every` steps. Needs a
    file system that all ranks share."""

    keep: Count = 2
    """The number of latest checkpoints to keep."""


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

    estimator: Literal["forward", "reverse", "greedy"] = "forward"
    """How hypergradients are computed: forward mode with sharing (FDS), reverse mode, or greedily step by step."""

    greedy: GreedyConfig = GreedyConfig()
    """Settings of the estimator greedy."""

    tangents: TangentsConfig = TangentsConfig()
    """How forward-mode tangents are computed."""

    mesh: MeshConfig = MeshConfig()
    """Ranks along each parallel axis."""

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
    """Where to compute; auto: a GPU if there is one for each rank."""

    output_dir: Folder = "runs"
    """The folder that holds the runs' folders; `~` and `$VARIABLES` are filled in."""

    name: FolderName | None = None
    """The name of the run's folder; null: made from task, model and time."""

    seed: Seed = 0
    """The seed from which every random number of the run is derived."""

    @model_validator(mode="after")
    def _no_contradictions(self) -> Config:
        refuse(config_contradictions(self))
        return self


def config_contradictions(config: Config) -> Iterator[Contradiction]:
    """Values of one config that are valid alone but not together."""
    epochs, steps = config.inner.epochs, config.outer.steps
    if isinstance(epochs, list) and len(epochs) != steps:
        problem = f"{show(epochs)} has {len(epochs)} entries for {steps} outer steps"
        expected = f"one number, or as many as outer.steps ({steps})"
        yield Contradiction(("inner", "epochs"), problem, expected, ("outer.steps",))
    if config.inner.nesterov and config.inner.optimizer != "sgd":
        problem = f"{config.inner.optimizer} has no such switch"
        yield Contradiction(("inner", "nesterov"), problem, "false, or inner.optimizer: sgd", ("inner.optimizer",))
    if config.estimator == "reverse":
        prune = config.tangents.prune
        for path, value in ((("clip_hvp",), config.tangents.clip_hvp), (("prune", "ratio"), prune.ratio)):
            if value:
                problem = f"{value:g} has no effect with estimator reverse, which has no tangents"
                yield Contradiction(("tangents", *path), problem, "leave it out", ("estimator",))
    groups = tuple(config.inner.groups or ())
    for name, entry in config.hyperparameters.items():
        for contradiction in hyperparameter_contradictions(name, entry, groups):
            yield contradiction._replace(path=("hyperparameters", name, *contradiction.path))
