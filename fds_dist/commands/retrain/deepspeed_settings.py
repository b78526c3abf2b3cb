"""The `deepspeed:` section: the keys of DeepSpeed's config that a retraining accepts, checked before training."""

from __future__ import annotations

import copy
import importlib
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import show, wrong_kind
from fds_dist.common.paths import expand_path
from fds_dist.common.registry import nearest
from fds_dist.config.explain import dotted
from fds_dist.config.yaml_text import parse_yaml

KEY = "deepspeed"

_ONE_STEP = "nothing: each batch is one step, as the schedule counts"
_BF16 = "deepspeed.bf16.enabled=true (fp16 skips steps, and the schedule does not)"
_OPTIMIZER = "nothing: the optimizer is the schedule's (inner.optimizer of the run), by torch.optim"
_BATCH = "task.batch_size of the run: a batch is split over the ranks"
_NO_TRACKERS = "nothing: the retraining is tracked as the run's config says"
OWNED = {
    "train_batch_size": _BATCH,
    "train_micro_batch_size_per_gpu": _BATCH,
    "gradient_accumulation_steps": "accumulate=NUMBER",
    "managed_gradient_accumulation": _ONE_STEP,
    "gradient_clipping": "clip_norm=NUMBER, or clip_gradient=NUMBER for each element",
    "gradient_allreduce_op": "nothing: the gradient is the mean over the batch",
    "optimizer": _OPTIMIZER,
    "zero_allow_untested_optimizer": _OPTIMIZER,
    "zero_force_ds_cpu_optimizer": _OPTIMIZER,
    "scheduler": "nothing: the learned schedule sets the learning rate of each step",
    "fp16": _BF16,
    "amp": _BF16,
    "torch_autocast": _BF16,
    "bfloat16": "deepspeed.bf16",
    "checkpoint": "nothing: restart=true trains anew, otherwise it continues from the last checkpoint",
    "elasticity": "nothing: the number of ranks stays that of the start",
    "tensorboard": _NO_TRACKERS,
    "wandb": _NO_TRACKERS,
    "comet": _NO_TRACKERS,
    "csv_monitor": _NO_TRACKERS,
}
"""Keys of DeepSpeed's config that other settings decide → what to set instead."""

PASSED_ON: dict[str, type | tuple[type, ...]] = {
    "zero_optimization": dict,
    "bf16": dict,
    "data_types": dict,
    "activation_checkpointing": dict,
    "comms_logger": dict,
    "flops_profiler": dict,
    "timers": dict,
    "communication_data_type": str,
    "log_level": str,
    "prescale_gradients": bool,
    "disable_allgather": bool,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "disable_python_gc": bool,
    "gradient_predivide_factor": (int, float),
    "steps_per_print": int,
}
"""Keys that DeepSpeed receives unchanged → their types."""

_TYPE_NAMES = {dict: "a mapping", str: "text", bool: "true or false", int: "a whole number"}
_CHECKED_BY = {
    "zero_optimization": ("deepspeed.runtime.zero.config", "DeepSpeedZeroConfig"),
    "bf16": ("deepspeed.runtime.precision_config", "DeepSpeedBF16Config"),
}
"""Sections that have a schema in DeepSpeed → its module and name."""


def section_of(value: object) -> tuple[dict[str, Any], list[Fault]]:
    """The section that `deepspeed=` sets: a mapping, or the path of a JSON or YAML file that holds one."""
    if isinstance(value, Mapping):
        return copy.deepcopy(dict(value)), []
    if not isinstance(value, str):
        return {}, [Fault(KEY, wrong_kind(value), "a mapping, or the path of a JSON or YAML file")]
    try:
        text = expand_path(value, KEY).read_text(encoding="utf-8-sig")
    except UserError as error:
        return {}, list(error.faults)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return {}, [Fault(KEY, f"{value}: {reason}", "a mapping, or the path of a JSON or YAML file")]
    content, faults = parse_yaml(text, source=value)  # JSON is YAML
    if not faults and not isinstance(content, Mapping):
        faults = [Fault(KEY, f"{value} holds {show(content)}", "a mapping from DeepSpeed's keys to values")]
    return (dict(content) if isinstance(content, Mapping) and not faults else {}), faults


def put(section: dict[str, Any], key: str, value: object) -> list[Fault]:
    """Sets `deepspeed.a.b` to `value` in the section; a fault if `deepspeed.a` is not a mapping."""
    *parents, name = key.removeprefix(f"{KEY}.").split(".")
    for parent in parents:
        below = section.setdefault(parent, {})
        if not isinstance(below, dict):
            return [Fault(key, f"{parent} is {show(below)}, which has no keys", "an override of a mapping's key")]
        section = below
    section[name] = value
    return []


def section_faults(section: Mapping[str, Any], with_schemas: bool = True) -> list[Fault]:
    """All faults of the section. `with_schemas` also applies DeepSpeed's schemas, which needs DeepSpeed."""
    faults = [fault for name, value in section.items() for fault in _key_faults(name, value)]
    faults += _offload_faults(section.get("zero_optimization"))
    if not with_schemas:
        return faults
    sections = {name: section[name] for name in _CHECKED_BY if isinstance(section.get(name), dict)}
    broken = {fault.key for fault in faults}
    schema_faults = [fault for name, value in sections.items() for fault in _schema_faults(name, value)]
    return faults + [fault for fault in schema_faults if fault.key not in broken]


def without_auto(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section without keys whose value is "auto": other trainers fill those in; here they mean the default."""
    explicit = {}
    for name, value in section.items():
        if isinstance(value, Mapping):
            explicit[name] = without_auto(value)
        elif value != "auto":
            explicit[name] = value
    return explicit


def _key_faults(name: str, value: object) -> Iterator[Fault]:
    key = f"{KEY}.{name}"
    if name in OWNED:
        yield Fault(key, "is decided by other settings", OWNED[name])
    elif name not in PASSED_ON:
        similar = nearest(name, [*PASSED_ON, *OWNED])
        known = "" if similar else f"one of {', '.join(PASSED_ON)}"
        yield Fault(key, "unknown key, or not supported by retrain", known, f"{KEY}.{similar}" if similar else "")
    elif not isinstance(value, PASSED_ON[name]) or (isinstance(value, bool) and PASSED_ON[name] is not bool):
        kind = PASSED_ON[name]
        yield Fault(key, wrong_kind(value), "a number" if isinstance(kind, tuple) else _TYPE_NAMES[kind])


def _offload_faults(zero: object) -> Iterator[Fault]:
    """Faults of offloading: the stage has none, or the target is not supported."""
    if not isinstance(zero, dict):
        return
    stage = zero.get("stage", 0)
    for name, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        key, offload = f"{KEY}.zero_optimization.{name}", zero.get(name)
        if not isinstance(offload, dict):
            continue
        device = offload.get("device", "none")
        if device not in ("none", "cpu"):
            yield Fault(f"{key}.device", f"{show(device)} is not supported by retrain", "cpu or none")
        elif device == "cpu" and stage in (0, 1, 2) and stage < lowest:
            yield Fault(key, f"has no effect on stage {stage}", f"stage={lowest}{'' if lowest == 3 else ' or higher'}")


def _schema_faults(name: str, value: dict[str, Any]) -> Iterator[Fault]:
    """The faults that DeepSpeed's schema finds in one section."""
    module, schema_name = _CHECKED_BY[name]
    schema = getattr(importlib.import_module(module), schema_name)
    try:
        schema(**value)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            path = (KEY, name, *detail["loc"])
            if detail["type"] != "extra_forbidden":
                yield Fault(dotted(path), f"{show(detail['input'])} is not valid", detail["msg"].lower())
                continue
            names = _names(schema) if len(detail["loc"]) == 1 else ()
            similar = nearest(str(path[-1]), names)
            yield Fault(dotted(path), "unknown key", "", dotted((*path[:-1], similar)) if similar else "")
    except (AssertionError, ValueError, TypeError) as error:
        yield Fault(f"{KEY}.{name}", str(error) or type(error).__name__)


def _names(schema: Any) -> list[str]:
    """The keys of a section, without deprecated ones."""
    fields = schema.model_fields.items()
    current = [(name, field) for name, field in fields if not (field.json_schema_extra or {}).get("deprecated")]
    return [field.alias or name for name, field in current]


def imported_deepspeed() -> Any:
    """The module `deepspeed`.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    import torch  # here: the help of `retrain` reads the settings and needs no torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise it looks for a GPU and warns that there is none
    try:
        deepspeed = importlib.import_module("deepspeed")
        operations = importlib.import_module("deepspeed.ops")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "deepspeed"
        problem = "deepspeed is not installed" if missing else f"deepspeed cannot be imported ({error})"
        raise UserError(Fault("engine", problem, 'pip install "fds-dist[deepspeed]", or engine=ddp')) from None
    # It calls functions of torch.distributed by deprecated names, with a warning at every step.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if not torch.cuda.is_available():
        # Its test of what could be compiled runs a compiler, whose errors are printed.
        vars(operations).setdefault("__compatible_ops__", defaultdict(bool))
    # On a CPU its first start would compile this operator for minutes; gloo does the same work.
    operations.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
