"""The commands of the command line: their functions, arguments and help."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fds_dist.commands import calls

if TYPE_CHECKING:
    from fds_dist.config.sections import Section

CONFIG = ("CONFIG", "a YAML file")
RUN_DIR = ("RUN_DIR", "the folder of a run")
SWEEP = ("FILE", "a sweep file, or ENTITY/PROJECT/SWEEP_ID")
OVERRIDES = ("key=value", "override a key, e.g. outer.steps=5")


def config_keys() -> type[Section]:
    """The keys of a config."""
    from fds_dist.config import Config

    return Config


def retrain_keys() -> type[Section]:
    """The keys of a retraining."""
    from fds_dist.commands.retrain.settings import RetrainSettings

    return RetrainSettings


@dataclass(frozen=True)
class Command:
    """A command, its arguments and its help."""

    run: Callable[[Namespace], int]
    """Returns the exit status."""
    text: str
    source: tuple[str, str] = CONFIG
    """Name and meaning of the first argument."""
    rest: tuple[str, str] | None = OVERRIDES
    """Name and meaning of all further arguments; None: no further arguments."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Option → the keyword arguments of argparse's `add_argument`."""
    keys: Callable[[], type[Section]] | None = config_keys
    """The section whose keys the line may override; None: no keys."""


def _number(text: str) -> dict[str, Any]:
    """An option that takes a whole number."""
    return {"type": int, "metavar": "N", "help": text}


def _switch(text: str) -> dict[str, Any]:
    """An option without a value."""
    return {"action": "store_true", "help": text}


COMMANDS = {
    "optimize": Command(
        calls.run_optimize,
        "learn the schedules: the main command",
        options={"--resume": {"metavar": "RUN_DIR", "help": "continue the run in this folder"}},
    ),
    "check": Command(
        calls.run_check,
        "print each rank's tangents, memory and time, and the resolved config; trains nothing",
        options={"--world-size": _number("plan for N ranks (default: the ranks of this launch)")},
    ),
    "verify": Command(
        calls.run_verify,
        "compare this task's hypergradients with reverse mode and finite differences, in float64",
        options={"--steps": _number("inner steps (default: at most 50)")},
    ),
    "retrain": Command(
        calls.run_retrain,
        "train from scratch on all training data with the schedule that a run learned",
        source=RUN_DIR,
        rest=("key=value", "override a key, e.g. epochs=50"),
        options={"--seeds": _number("how many retrainings (default: 1)")},
        keys=retrain_keys,
    ),
    "export": Command(
        calls.run_export,
        "the learned schedule as a Python snippet that needs only torch, as CSV or as JSON",
        source=RUN_DIR,
        rest=None,
        options={
            "--format": {"choices": ("snippet", "csv", "json"), "default": "snippet", "help": "default: snippet"},
            "--horizon": _number("stretch the schedule to N optimizer steps (default: as learned)"),
            "--schedule": {
                "choices": ("result", "average", "best", "last"),
                "default": "result",
                "help": "the result of the search (default), or one of its candidates",
            },
            "--best": _switch("short for --schedule best: the values with the lowest validation loss"),
            "--output": {"metavar": "FILE", "help": "where to write (default: standard output)"},
        },
        keys=None,
    ),
    "compare": Command(
        calls.run_compare, "compare FDS with tuned schedules, greedy, random search, TPE and Hyperband at equal compute"
    ),
    "bench": Command(
        calls.run_bench,
        "measure on this machine what steps with k tangents cost, scaling, memory and precision",
        options={
            "--json": {"nargs": "?", "const": "", "metavar": "FILE", "help": "print, or write, one JSON object"},
            "--seconds": {"type": float, "metavar": "N", "help": "about how long it may take (default: 60)"},
        },
    ),
    "report": Command(
        calls.run_report,
        "make a self-contained HTML page and figures of one run, or of several side by side",
        source=RUN_DIR,
        rest=("RUN_DIR", "more runs, shown side by side"),
        options={"--output": {"metavar": "DIR", "help": "where to write (default: RUN_DIR/report)"}},
        keys=None,
    ),
    "noise": Command(
        calls.run_noise,
        "measure hypergradient noise against window size, and recommend numbers of buckets",
        options={
            "--steps": _number("inner steps (default: 250)"),
            "--runs": _number("inner runs (default: 100)"),
        },
    ),
    "sweep": Command(
        calls.run_sweep,
        "run many jobs of one config with different values, with Weights & Biases or without",
        source=SWEEP,
        rest=None,
        options={
            "--local": _switch("run the jobs on this machine, one after the other, without W&B"),
            "--count": _number("run N jobs; with --local the first N (default: all)"),
            "--output-dir": {
                "metavar": "DIR",
                "default": "runs/sweeps",
                "help": "where --local keeps its results (default: runs/sweeps)",
            },
            "--check": _switch("only check the file and its first job"),
            "--create": _switch("only create the sweep in W&B and print ENTITY/PROJECT/SWEEP_ID"),
        },
        keys=None,
    ),
}
"""All commands by name, in the order of `--help`."""
