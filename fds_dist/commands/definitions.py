"""The commands of the command line: their functions, arguments and help."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fds_dist.commands import calls

if TYPE_CHECKING:
    from fds_dist.config.sections import Section


class Argument(NamedTuple):
    """An argument without a dash."""

    name: str
    meaning: str
    is_needed: bool = True
    """Whether the line is refused without it; False: the command itself says what its absence means."""


CONFIG = Argument("CONFIG", "a YAML file, the folder of a run, or a shipped config such as digits", False)
RUN_DIR = Argument("RUN_DIR", "the folder of a run")
SWEEP = Argument("FILE", "a sweep file, or ENTITY/PROJECT/SWEEP_ID")
OVERRIDES = Argument("key=value", "override a key, e.g. outer.steps=5")


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
    examples: tuple[str, ...]
    """Lines that work, without the name of the program."""
    source: Argument | None = CONFIG
    """The first argument; None: there is none."""
    rest: Argument | None = OVERRIDES
    """All further arguments; None: no further arguments."""
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
        ("optimize digits", "optimize digits outer.steps=3 name=first", "optimize --resume runs/first outer.steps=8"),
        options={"--resume": {"metavar": "RUN_DIR", "help": "continue the run in this folder"}},
    ),
    "check": Command(
        calls.run_check,
        "print each rank's tangents, memory and time, and the resolved config; trains nothing",
        ("check digits", "check twins/digits --world-size 4 mesh.data=2"),
        options={"--world-size": _number("plan for N ranks (default: the ranks of this launch)")},
    ),
    "verify": Command(
        calls.run_verify,
        "compare this task's hypergradients with reverse mode and finite differences, in float64",
        ("verify digits --steps 10", "verify runs/first"),
        options={"--steps": _number("inner steps (default: at most 50)")},
    ),
    "retrain": Command(
        calls.run_retrain,
        "train from scratch on all training data with the schedule that a run learned",
        ("retrain runs/first epochs=30", "retrain runs/first --seeds 3 mixed_precision=bf16"),
        source=RUN_DIR,
        rest=Argument("key=value", "override a key, e.g. epochs=50"),
        options={"--seeds": _number("how many retrainings (default: 1)")},
        keys=retrain_keys,
    ),
    "export": Command(
        calls.run_export,
        "the learned schedule as a Python snippet that needs only torch, as CSV or as JSON",
        ("export runs/first", "export runs/first --format csv --horizon 5000 --output schedule.csv"),
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
        calls.run_compare,
        "compare FDS with tuned schedules, greedy, random search, TPE and Hyperband at equal compute",
        ("compare twins/digits compare.budget=60000", "compare runs/first 'compare.methods=[fds, cosine, random]'"),
    ),
    "bench": Command(
        calls.run_bench,
        "measure on this machine what steps with k tangents cost, scaling, memory and precision",
        ("bench", "bench digits --seconds 30 --json bench.json"),
        options={
            "--json": {"nargs": "?", "const": "", "metavar": "FILE", "help": "print, or write, one JSON object"},
            "--seconds": {"type": float, "metavar": "N", "help": "about how long it may take (default: 60)"},
        },
    ),
    "report": Command(
        calls.run_report,
        "make a self-contained HTML page and figures of one run, or of several side by side",
        ("report runs/first", "report runs/first --watch", "report runs/first runs/second --output report"),
        source=RUN_DIR,
        rest=Argument("RUN_DIR", "more runs, shown side by side"),
        options={
            "--output": {"metavar": "DIR", "help": "where to write (default: RUN_DIR/report)"},
            "--watch": _switch("write the page again whenever the run has come further, until it is over or Ctrl-C"),
        },
        keys=None,
    ),
    "noise": Command(
        calls.run_noise,
        "measure hypergradient noise against window size, and recommend numbers of buckets",
        ("noise twins/digits", "noise runs/first --runs 30 --steps 100"),
        options={
            "--steps": _number("inner steps (default: 250)"),
            "--runs": _number("inner runs (default: 100)"),
        },
    ),
    "sweep": Command(
        calls.run_sweep,
        "run many jobs of one config with different values, with Weights & Biases or without",
        ("sweep sweep.yaml --check", "sweep sweep.yaml --local --count 2"),
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
    "init": Command(
        calls.run_init,
        "write a config in which all keys are explained, and for a task of one's own a file to begin with",
        ("init", "init mine --task", "init --from twins/digits"),
        source=Argument("NAME", "of the config (default: config, or that of the shipped one)", False),
        rest=None,
        options={
            "--task": _switch("write my_task.py too: data, loss and network of one's own"),
            "--from": {"metavar": "NAME", "dest": "shipped", "help": "copy the shipped config of this name"},
        },
        keys=None,
    ),
    "config": Command(
        calls.run_config,
        "explain a key of the config, or print a config with all its defaults",
        ("config", "config outer.steps", "config task.digits", "config digits outer.steps=3"),
        source=Argument("KEY", "a key, of which the last part is enough; or a config", False),
    ),
    "schema": Command(
        calls.run_schema,
        "print the JSON Schema of configs, for editors",
        ("schema",),
        source=None,
        rest=None,
        keys=None,
    ),
}
"""All commands by name, in the order of `--help`."""
