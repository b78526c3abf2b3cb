"""Reads and checks a sweep file: reports all faults at once, before anything is created or started."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fds_dist.commands.sweep.command_line import Command, read_command
from fds_dist.commands.sweep.parameters import Parameter, read_parameter
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import show, wrong_kind
from fds_dist.common.registry import is_positive_int, nearest
from fds_dist.config import Draft, read_draft
from fds_dist.config.load import read_mapping

METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")
KEYS = ("name", "description", "project", "entity", "program", "command", "method", "metric", "parameters", "run_cap")
METRICS = (
    "best_val_loss",
    "best_val_accuracy",
    "plain_steps",
    "outer/val_loss",
    "outer/val_accuracy",
    "outer/seconds",
    "inner/train_loss",
)
"""The metrics that every `optimize` logs; the first three when it ends."""


@dataclass(frozen=True)
class Sweep:
    """A sweep without faults."""

    path: Path
    content: dict[str, Any]
    """The content of the file, as W&B receives it."""
    method: str
    parameters: tuple[Parameter, ...]
    command: Command

    @property
    def name(self) -> str:
        """The name in the file; without one, the file's name."""
        return str(self.content.get("name") or self.path.stem)

    @property
    def run_cap(self) -> int | None:
        """The largest number of jobs; None: no limit."""
        return self.content.get("run_cap")

    def jobs(self) -> Iterator[dict[str, Any]]:
        """The values of each job: all combinations of a grid, or random draws without end.

        A job's draw depends only on its number, so that a sweep can be continued.
        """
        names = [parameter.name for parameter in self.parameters]
        if self.method == "grid":
            for values in itertools.product(*(parameter.choices for parameter in self.parameters)):
                yield dict(zip(names, values, strict=True))
            return
        for number in itertools.count():
            draws = random.Random(f"job {number}")
            yield {parameter.name: parameter.at(draws.random()) for parameter in self.parameters}


def read_sweep(path: Path, examine: Callable[[Draft], Sequence[Fault]] = lambda draft: draft.faults) -> Sweep:
    """The sweep in a file.

    Args:
        examine: returns the faults of the first job's config.

    Raises:
        UserError: with every fault of the file, and of the config with any of the sweep's values.
    """
    content, faults = read_mapping(path)
    if content is None:
        raise UserError(faults)
    for key in content:
        if key not in KEYS:
            faults.append(Fault(key, "unknown key", "" if nearest(key, KEYS) else _one_of(KEYS), nearest(key, KEYS)))
    method = content.get("method")
    if method not in METHODS:
        nearest_name = nearest(method, METHODS) if isinstance(method, str) else ""
        problem = f"{show(method)} is not a method" if method is not None else "is missing"
        faults.append(Fault("method", problem, _one_of(METHODS), nearest_name))
    faults += [*_plain_faults(content), *_metric_faults(content.get("metric"), method)]
    parameters = _parameters(content, faults)
    command = read_command(content.get("command"), content.get("program"), faults)
    if command is not None:
        faults += _config_faults(command, parameters, examine)
    if faults or command is None:
        raise UserError(dict.fromkeys(faults))
    return Sweep(path, content, str(method), parameters, command)


def _plain_faults(content: dict[str, Any]) -> Iterator[Fault]:
    for key in ("name", "description", "project", "entity", "program"):
        if key in content and not isinstance(content[key], str):
            yield Fault(key, wrong_kind(content[key]), "text (in quotes where it looks like something else)")
    if isinstance(content.get("name"), str) and ("/" in content["name"] or not content["name"].strip(". ")):
        yield Fault("name", f"{show(content['name'])} is not a folder's name", "a name without slashes")
    if "run_cap" in content and not is_positive_int(content["run_cap"]):
        problem = "is out of range" if type(content["run_cap"]) is int else "is not a whole number"
        yield Fault("run_cap", f"{show(content['run_cap'])} {problem}", "a whole number of at least 1")


def _metric_faults(metric: Any, method: Any) -> Iterator[Fault]:
    if metric is None:
        if method == "bayes":
            yield Fault("metric", "is missing, and bayes needs one", "{name: best_val_loss, goal: minimize}")
        return
    if not isinstance(metric, dict):
        yield Fault("metric", wrong_kind(metric), "{name: best_val_loss, goal: minimize}")
        return
    for key in metric:
        if key not in ("name", "goal"):
            yield Fault(f"metric.{key}", "unknown key", "name and goal")
    for key, known, problem in (("name", METRICS, "is not logged by any run"), ("goal", GOALS, "is not a goal")):
        value = metric.get(key)
        if value is None:
            yield Fault(f"metric.{key}", "is missing", _one_of(known))
        elif value not in known:
            nearest_name = nearest(value, known) if isinstance(value, str) else ""
            yield Fault(f"metric.{key}", f"{show(value)} {problem}", _one_of(known), nearest_name)


def _parameters(content: dict[str, Any], faults: list[Fault]) -> tuple[Parameter, ...]:
    specs = content.get("parameters")
    if not isinstance(specs, dict) or not specs:
        problem = "is missing" if specs is None else "{} is empty" if specs == {} else wrong_kind(specs)
        faults.append(Fault("parameters", problem, "a mapping such as {seed: {values: [0, 1, 2]}}"))
        return ()
    read = [read_parameter(name, spec, faults) for name, spec in specs.items()]
    parameters = tuple(parameter for parameter in read if parameter is not None)
    if content.get("method") == "grid":
        for parameter in parameters:
            if parameter.is_range:
                faults.append(
                    Fault(f"parameters.{parameter.name}", "is a range, which a grid cannot have", "{values: […]}")
                )
    return parameters


def _config_faults(
    command: Command, parameters: tuple[Parameter, ...], examine: Callable[[Draft], Sequence[Fault]]
) -> Iterator[Fault]:
    """The faults of the config with the first job's values, and with each other value in place of one of them."""
    alone = read_draft(command.config, [*command.before, *command.after]).config
    known = tuple(alone.hyperparameters) if alone is not None else ()
    names = {parameter.name for parameter in parameters}
    effective = []
    for parameter in parameters:
        key, (section, name, *below) = f"parameters.{parameter.name}", (*parameter.name.split("."), "")
        unknown = section == "hyperparameters" and any(below) and name not in known
        if any(override.startswith(f"{parameter.name}=") for override in command.after):
            yield Fault(key, "has no effect: the command sets it after the values", f"{parameter.name} set once")
        elif unknown and f"{section}.{name}.init" not in names:
            nearest_name = nearest(name, known)
            suggestion = ".".join((section, nearest_name, *below)).rstrip(".") if nearest_name else ""
            yield Fault(key, f"the config has no hyperparameter {name}", _one_of(known), suggestion)
        else:
            effective.append(parameter)
    first = {parameter.name: parameter.choices[0] for parameter in effective}
    others = [{**first, each.name: value} for each in effective for value in each.choices[1:]]
    config_faults = [*examine(read_draft(command.config, command.overrides(first)))]
    for values in others:
        config_faults += read_draft(command.config, command.overrides(values)).faults
    for fault in dict.fromkeys(config_faults):
        yield replace(fault, key=_where(fault.key, command, names))


def _where(key: str, command: Command, names: set[str]) -> str:
    """The place in the sweep file or in the config from which a fault of the config comes."""
    if any(f"{key}.".startswith((f"{name}.", f"{name}[")) or name.startswith(f"{key}.") for name in names if key):
        return f"parameters.{key}"
    set_by_command = {override.partition("=")[0] for override in (*command.before, *command.after)}
    return f"command, {key}" if key in set_by_command else f"{command.config}, {key}" if key else ""


def _one_of(names: Sequence[str]) -> str:
    return f"one of {', '.join(names)}"
