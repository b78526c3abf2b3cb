"""The settings of a retraining: `key=value` overrides, with defaults from the run's config."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from fds_dist.commands.retrain.deepspeed_settings import (
    imported_deepspeed,
    put,
    section_faults,
    section_of,
    without_auto,
)
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Clip, Count, Decay, EpochsOrNone, Runs, Seed, StepsOrNone, Switch
from fds_dist.common.registry import nearest
from fds_dist.config import Config
from fds_dist.config.explain import dotted, findings
from fds_dist.config.inner import one_epoch_unless_told
from fds_dist.config.references import missing_faults, references_in
from fds_dist.config.sections import Contradiction, Section, refuse
from fds_dist.config.yaml_text import parse_yaml


class RetrainSettings(Section):
    """The settings of a retraining."""

    engine: Literal["ddp", "deepspeed"] = "ddp"
    """How training is spread over ranks: ddp (`torch.nn.parallel.DistributedDataParallel`; on one rank plain PyTorch)
    or deepspeed (ZeRO)."""

    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed's own config, such as `deepspeed.zero_optimization.stage=3`; also `deepspeed=FILE`, JSON or YAML."""

    schedule: Literal["result", "average", "best", "last"] = "result"
    """The learned values: the result of the search, or one of its candidates: average (the mean of the last values),
    best (those with the lowest validation loss) or last (after the last outer step)."""

    epochs: EpochsOrNone = None
    """Passes over the training data; the schedule is stretched to them. Default: those of the longest inner run."""

    steps: StepsOrNone = None
    """Optimizer steps, in place of epochs. Default: those of the longest inner run, where the run has inner.steps."""

    dtype: Literal["float32", "float64"] = "float32"
    """Precision of weights, data and optimizer state."""

    mixed_precision: Literal["none", "bf16"] = "none"
    """bf16 runs network and loss under `torch.autocast`; weights, optimizer state and outputs keep `dtype`. Default:
    the run's inner.precision (with engine=deepspeed that sets deepspeed.bf16.enabled)."""

    accumulate: Count = 1
    """Micro-batches that each batch is cut into. Default: the run's inner.accumulate."""

    clip_gradient: Clip = None
    """Elementwise bound on the gradient, as `inner.clip_gradient`; null: none. Default: the run's, unless clip_norm is
    given."""

    clip_norm: Clip = None
    """Bound on the Euclidean norm of the whole gradient, after clip_gradient; null: none. Default: the run's."""

    ema: Decay = None
    """Decay of a moving average of the weights, which then is what is tested and saved; null: none. Default: that of
    the run."""

    seed: Seed = 0
    """The first retraining's seed, for weights, batches and dropout."""

    seeds: Runs = 1
    """Number of retrainings, one after the other, with seeds counting up from `seed`."""

    hold_out: Switch = False
    """Leave the validation part out of the training, and choose best.safetensors by it: the epoch with the highest
    accuracy, or the lowest loss where there is none. false: train on all data; best.safetensors is then the same as
    last.safetensors. Tasks without retrain_batches always leave it out."""

    restart: Switch = False
    """Train anew and overwrite an earlier retraining in the folder, instead of continuing it."""

    @property
    def all_seeds(self) -> range:
        """The seed of each retraining."""
        return range(self.seed, self.seed + self.seeds)

    _one_epoch = model_validator(mode="before")(one_epoch_unless_told)

    @model_validator(mode="after")
    def _no_contradictions(self) -> RetrainSettings:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[Contradiction]:
        if self.steps is not None and self.epochs is not None:
            problem = f"{self.steps} and epochs={self.epochs:g} exclude each other"
            yield Contradiction(("steps",), problem, "one of the two")
        if self.mixed_precision != "none" and self.dtype != "float32":
            problem = f"{self.mixed_precision} has no effect on {self.dtype}"
            yield Contradiction(("mixed_precision",), problem, "none, or dtype=float32")
        if self.engine == "deepspeed":
            if self.clip_gradient is not None and self.clip_norm is not None:
                problem = f"{self.clip_norm:g} and clip_gradient={self.clip_gradient:g} exclude each other"
                expected = "one of the two, and null for the other: DeepSpeed clips the norm first, the search last"
                yield Contradiction(("clip_norm",), problem, expected)
            if self.ema is not None:
                problem = f"{self.ema:g} averages whole weights, of which ZeRO gives each rank a part"
                yield Contradiction(("ema",), problem, "null with engine=deepspeed, or engine=ddp")
            if self.dtype != "float32":
                yield Contradiction(("dtype",), f"ZeRO does not support {self.dtype}", "float32 with engine=deepspeed")
            if self.mixed_precision != "none":
                expected = "deepspeed.bf16.enabled=true with engine=deepspeed"
                yield Contradiction(("mixed_precision",), f"{self.mixed_precision} is autocast", expected)
        elif self.deepspeed:
            yield Contradiction(("deepspeed",), f"has no effect with engine={self.engine}", "engine=deepspeed")


def read_settings(overrides: Sequence[str], config: Config | None = None) -> RetrainSettings:
    """The settings of `key=value` strings; the run's `config` gives the defaults.

    Raises:
        UserError: with every fault, such as an unknown key (and the nearest valid one) or a wrong value.
    """
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key:
            faults.append(Fault(override, "is not an override", "key=value, such as epochs=100"))
            continue
        value, of_yaml = parse_yaml(text, prefix=key)
        faults += of_yaml
        if key == "deepspeed":
            values[key], of_section = section_of(value)
            faults += of_section
        elif key.startswith("deepspeed."):
            faults += put(values.setdefault("deepspeed", {}), key, value)
        else:
            values[key] = value
    for path, text in references_in(values):
        faults += missing_faults(dotted(path), text)
    faults += _check_deepspeed(values)
    faults += _unknown_keys(values)
    known = {key: value for key, value in values.items() if key in RetrainSettings.model_fields}
    try:
        settings = RetrainSettings.model_validate({**_defaults(config, values), **known})
    except ValidationError as error:
        broken = {fault.key for fault in faults}
        faults += [finding.fault for finding in findings(error) if finding.fault.key not in broken]
        raise UserError(faults) from None
    if faults:
        raise UserError(faults)
    return settings


def _defaults(config: Config | None, values: dict[str, Any]) -> dict[str, Any]:
    """The defaults from the run's config."""
    if config is None:
        return {}
    lengths = {"epochs": config.inner.epochs, "steps": config.inner.steps}
    longest = {key: max(length) if isinstance(length, list) else length for key, length in lengths.items()}
    is_told = any(values.get(key) is not None for key in longest)
    low = config.inner.precision == "bf16" and values.get("dtype", config.dtype) == "float32"
    by_deepspeed = values.get("engine") == "deepspeed"
    if low and by_deepspeed:
        values["deepspeed"].setdefault("bf16", {"enabled": True})  # its own mixed precision
    return {
        "accumulate": config.inner.accumulate,
        "mixed_precision": "bf16" if low and not by_deepspeed else "none",
        **({} if is_told else longest),
        "dtype": config.dtype,
        "clip_gradient": None if values.get("clip_norm") is not None else config.inner.clip_gradient,
        "clip_norm": config.inner.clip_norm,
        "ema": config.inner.ema,
        "seed": config.seed,
    }


def _check_deepspeed(values: dict[str, Any]) -> list[Fault]:
    """Removes the keys with the value "auto" from the section; the faults of the rest, and a missing DeepSpeed.

    Without DeepSpeed only the keys of the section can be checked.
    """
    if values.get("engine") != "deepspeed":
        return []
    section = values["deepspeed"] = without_auto(values.get("deepspeed", {}))
    try:
        imported_deepspeed()
    except UserError as error:
        return [*error.faults, *section_faults(section, with_schemas=False)]
    return section_faults(section)


def _unknown_keys(values: Iterable[str]) -> list[Fault]:
    """A fault for each unknown key. They are removed first: pydantic finds contradictions only among known keys."""
    known = RetrainSettings.model_fields
    similar = {key: nearest(key, known) for key in values if key not in known}
    all_keys = f"one of {', '.join(known)}"
    return [Fault(key, "unknown key", "" if name else all_keys, name) for key, name in similar.items()]
