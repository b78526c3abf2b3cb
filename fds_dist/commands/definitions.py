"""The commands of the command line: their functions, arguments and help.

A command's module is imported only when the command runs, so that `--help` needs no torch.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fds_dist.commands import DONE, FAILED
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.paths import expand_path
from fds_dist.distributed.environment import read_environment

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


def _optimize(options: Namespace) -> int:
    from fds_dist.commands.optimize.command import optimize

    optimize(options.config, options.overrides, resume=options.resume)
    return DONE


def _check(options: Namespace) -> int:
    from fds_dist.commands.check.command import check, print_check

    built, report = check(options.config, options.overrides, world_size=options.world_size)
    if _is_first():
        print_check(built.config, built.problem, report, built.remarks)
    return DONE


def _verify(options: Namespace) -> int:
    from fds_dist.commands.verify.command import print_verification, verify

    built, verification = verify(options.config, options.overrides, steps=options.steps)
    if _is_first():
        print_verification(built.problem, verification)
    return DONE if verification.passed else FAILED


def _retrain(options: Namespace) -> int:
    from fds_dist.commands.retrain.command import retrain

    seeds = [] if options.seeds is None else [f"seeds={options.seeds}"]
    done = retrain(options.config, [*options.overrides, *seeds])
    if _is_first():
        print(f"results: {done.folder} (summary.json; of each seed history.jsonl, last.safetensors, best.safetensors)")
    return DONE


def _compare(options: Namespace) -> int:
    from fds_dist.commands.compare.command import compare
    from fds_dist.commands.compare.table import print_comparison

    result = compare(options.config, options.overrides)
    if _is_first():
        print_comparison(result.comparison)
        print(f"results: {result.folder} (compare.json, plots)")
    return DONE


def _noise(options: Namespace) -> int:
    from fds_dist.commands.noise.command import NOISE_RUNS, NOISE_STEPS, noise
    from fds_dist.commands.noise.report import print_noise
    from fds_dist.common.console import default_console

    runs = NOISE_RUNS if options.runs is None else options.runs
    steps = NOISE_STEPS if options.steps is None else options.steps
    result = noise(options.config, options.overrides, runs=runs, steps=steps)
    if _is_first():
        print_noise(result.report, default_console())
        print(f"results: {result.folder} (noise.json, plots)")
    return DONE


def _report(options: Namespace) -> int:
    from fds_dist.commands.report.command import report

    page = report([options.config, *options.overrides], options.output)
    if _is_first():
        print(f"report: {page}")
    return DONE


def _bench(options: Namespace) -> int:
    from fds_dist.commands.bench.command import SECONDS, bench
    from fds_dist.commands.bench.report import print_bench
    from fds_dist.common.console import default_console

    if options.json and not options.json.endswith(".json"):  # a config, perhaps, which must not be written over
        raise UserError(Fault("--json", f"{options.json} does not end with .json", "--json, or --json FILE.json"))
    seconds = SECONDS if options.seconds is None else options.seconds
    report = bench(options.config, options.overrides, seconds=seconds, progress=True)
    if not _is_first():
        return DONE
    if options.json is None:
        print_bench(report, default_console())
    elif options.json:
        _write(options.json, f"{report.to_json()}\n", "--json")
    else:
        print(report.to_json())
    return DONE


def _export(options: Namespace) -> int:
    from fds_dist.commands.export import export

    text = export(options.config, options.format, horizon=options.horizon, schedule=options.schedule, best=options.best)
    if not _is_first():
        return DONE
    if options.output is None:
        _print_to_pipe(text)
        return DONE
    _write(options.output, text, "--output")
    return DONE


def _sweep(options: Namespace) -> int:
    from fds_dist.commands.sweep.command import sweep

    return sweep(
        options.config,
        local=options.local,
        check=options.check,
        create=options.create,
        count=options.count,
        output_dir=options.output_dir,
    )


def _is_first() -> bool:
    """Whether this is rank 0, the one that prints."""
    return read_environment().rank == 0


def _print_to_pipe(text: str) -> None:
    """Prints `text`; stops quietly when the pipe is closed, as by `head`."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit fails again


def _write(path: str, text: str, option: str) -> None:
    """Writes the file that `option` names."""
    file = expand_path(path, option)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(Fault(option, f"{file}: {error.strerror}", "a file to write")) from None


def _number(text: str) -> dict[str, Any]:
    """An option that takes a whole number."""
    return {"type": int, "metavar": "N", "help": text}


def _switch(text: str) -> dict[str, Any]:
    """An option without a value."""
    return {"action": "store_true", "help": text}


COMMANDS = {
    "optimize": Command(
        _optimize,
        "learn the schedules: the main command",
        options={"--resume": {"metavar": "RUN_DIR", "help": "continue the run in this folder"}},
    ),
    "check": Command(
        _check,
        "print each rank's tangents, memory and time, and the resolved config; trains nothing",
        options={"--world-size": _number("plan for N ranks (default: the ranks of this launch)")},
    ),
    "verify": Command(
        _verify,
        "compare this task's hypergradients with reverse mode and finite differences, in float64",
        options={"--steps": _number("inner steps (default: at most 50)")},
    ),
    "retrain": Command(
        _retrain,
        "train from scratch on all training data with the schedule that a run learned",
        source=RUN_DIR,
        rest=("key=value", "override a key, e.g. epochs=50"),
        options={"--seeds": _number("how many retrainings (default: 1)")},
        keys=retrain_keys,
    ),
    "export": Command(
        _export,
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
        _compare, "compare FDS with tuned schedules, greedy, random search, TPE and Hyperband at equal compute"
    ),
    "bench": Command(
        _bench,
        "measure on this machine what steps with k tangents cost, scaling, memory and precision",
        options={
            "--json": {"nargs": "?", "const": "", "metavar": "FILE", "help": "print, or write, one JSON object"},
            "--seconds": {"type": float, "metavar": "N", "help": "about how long it may take (default: 60)"},
        },
    ),
    "report": Command(
        _report,
        "make a self-contained HTML page and figures of one run, or of several side by side",
        source=RUN_DIR,
        rest=("RUN_DIR", "more runs, shown side by side"),
        options={"--output": {"metavar": "DIR", "help": "where to write (default: RUN_DIR/report)"}},
        keys=None,
    ),
    "noise": Command(
        _noise,
        "measure hypergradient noise against window size, and recommend numbers of buckets",
        options={
            "--steps": _number("inner steps (default: 250)"),
            "--runs": _number("inner runs (default: 100)"),
        },
    ),
    "sweep": Command(
        _sweep,
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
