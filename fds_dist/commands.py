"""The commands: what each does with its line, and what may stand there."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fds_dist.faults import Fault, UserError

DONE, FAILED = 0, 1
"""Exit statuses."""

CONFIG = ("CONFIG", "a YAML file")
RUN_DIR = ("RUN_DIR", "the folder of a run")
OVERRIDES = ("key=value", "override a key, e.g. outer.steps=5")


@dataclass(frozen=True)
class Command:
    """What a command does, and what may stand on its line."""

    run: Callable[[argparse.Namespace], int]
    """Gives the exit status."""
    text: str
    source: tuple[str, str] = CONFIG
    """Name and meaning of the first argument."""
    rest: tuple[str, str] | None = OVERRIDES
    """Name and meaning of all further ones; None: there are none."""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name, what argparse takes for it."""


def _optimize(options: argparse.Namespace) -> int:
    from fds_dist.api import optimize

    optimize(options.config, options.overrides, resume=options.resume)
    return DONE


def _check(options: argparse.Namespace) -> int:
    from fds_dist.api import check
    from fds_dist.tables import print_check

    built, report = check(options.config, options.overrides, world_size=options.world_size)
    if _is_first():
        print_check(built.config, built.problem, report, built.remarks)
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from fds_dist.api import verify
    from fds_dist.tables import print_verification

    built, verification = verify(options.config, options.overrides, steps=options.steps)
    if _is_first():
        print_verification(built.problem, verification)
    return DONE if verification.passed else FAILED


def _retrain(options: argparse.Namespace) -> int:
    from fds_dist.studies import retrain

    seeds = [] if options.seeds is None else [f"seeds={options.seeds}"]
    done = retrain(options.config, [*options.overrides, *seeds])
    if _is_first():
        print(f"results: {done.folder} (summary.json; of each seed history.jsonl, last.safetensors, best.safetensors)")
    return DONE


def _compare(options: argparse.Namespace) -> int:
    from fds_dist.compare import print_comparison
    from fds_dist.studies import compare

    comparison, folder = compare(options.config, options.overrides)
    if _is_first():
        print_comparison(comparison)
        print(f"results: {folder} (compare.json, plots)")
    return DONE


def _noise(options: argparse.Namespace) -> int:
    from fds_dist.noise import print_noise
    from fds_dist.studies import NOISE_RUNS, NOISE_STEPS, noise
    from fds_dist.tables import default_console

    runs = NOISE_RUNS if options.runs is None else options.runs
    steps = NOISE_STEPS if options.steps is None else options.steps
    report, folder = noise(options.config, options.overrides, runs=runs, steps=steps)
    if _is_first():
        print_noise(report, default_console())
        print(f"results: {folder} (noise.json, plots)")
    return DONE


def _report(options: argparse.Namespace) -> int:
    from fds_dist.studies import report

    page = report([options.config, *options.overrides], options.output)
    if _is_first():
        print(f"report: {page}")
    return DONE


def _bench(options: argparse.Namespace) -> int:
    from fds_dist.bench import print_bench
    from fds_dist.studies import bench
    from fds_dist.tables import default_console

    report = bench(options.config, options.overrides)
    if _is_first():
        if options.json:
            print(report.to_json())
        else:
            print_bench(report, default_console())
    return DONE


def _export(options: argparse.Namespace) -> int:
    from fds_dist.export import export

    text = export(options.config, options.format, horizon=options.horizon, best=options.best)
    if not _is_first():
        return DONE
    if options.output is None:
        _print_all(text)
        return DONE
    try:
        Path(options.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(Fault("--output", f"{options.output}: {error.strerror}", "a file to write")) from None
    return DONE


def _is_first() -> bool:
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0


def _print_all(text: str) -> None:
    """Prints as much as the reader of a pipe wants: `head` has soon enough."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails once more


def _number(text: str) -> dict[str, Any]:
    """An option that takes a number."""
    return {"type": int, "metavar": "N", "help": text}


COMMANDS = {
    "optimize": Command(
        _optimize,
        "learn the schedules: the main job",
        options={"--resume": {"metavar": "RUN_DIR", "help": "go on with the run in this folder"}},
    ),
    "check": Command(
        _check,
        "no training: who owns which tangent, memory and time per rank, the resolved config",
        options={"--world-size": _number("plan for N ranks (default: as launched)")},
    ),
    "verify": Command(
        _verify,
        "this task's hypergradients against reverse mode and finite differences, in float64",
        options={"--steps": _number("inner steps (default: at most 50)")},
    ),
    "retrain": Command(
        _retrain,
        "train from scratch on all training data with the schedule that a run learned",
        source=RUN_DIR,
        options={"--seeds": _number("how many retrainings (default: 1)")},
    ),
    "export": Command(
        _export,
        "the learned schedule to take away: a Python snippet that needs torch alone, or CSV, or JSON",
        source=RUN_DIR,
        rest=None,
        options={
            "--format": {"choices": ("snippet", "csv", "json"), "default": "snippet", "help": "default: snippet"},
            "--horizon": _number("stretch it to N optimizer steps (default: as learned)"),
            "--best": {"action": "store_true", "help": "the one of the lowest validation loss, not the last one"},
            "--output": {"metavar": "FILE", "help": "where to write (default: standard output)"},
        },
    ),
    "compare": Command(
        _compare, "FDS beside greedy, a tuned cosine, random search, TPE and Hyperband at equal compute"
    ),
    "bench": Command(
        _bench,
        "the cost model's figures on this machine: step cost, scaling, memory, precision",
        options={"--json": {"action": "store_true", "help": "print one JSON object"}},
    ),
    "report": Command(
        _report,
        "one self-contained HTML page and figures of a run, or of several side by side",
        source=RUN_DIR,
        rest=("RUN_DIR", "more runs, to be shown side by side"),
        options={"--output": {"metavar": "DIR", "help": "where to write (default: RUN_DIR/report)"}},
    ),
    "noise": Command(
        _noise,
        "hypergradient noise against window size; recommends bucket counts",
        options={
            "--steps": _number("inner steps (default: 250)"),
            "--runs": _number("inner runs (default: 100)"),
        },
    ),
}
