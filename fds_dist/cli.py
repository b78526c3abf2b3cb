"""The command line: parse, call, print. The same line works bare, under torchrun, deepspeed and srun.

Exit status: 0 done, 2 the user's input is wrong (one line per fault), 1 anything else.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fds_dist.commands import DONE, FAILED, INTERRUPTED, WRONG_INPUT
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import nearest

FIRST_WORD_SECONDS = 3.0
"""How long other ranks of a node wait before they exit.

The launcher ends all ranks when one exits; the node's first rank, which prints why, must come to it.
"""
PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: which signal a process gets when its parent dies."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        _end_with_launcher()
        return options.command.run(options)
    except UserError as error:
        return _explain(error.faults, WRONG_INPUT)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        from fds_dist.commands.optimize import EXPLAINED

        if isinstance(error, EXPLAINED):
            return _explain([error], FAILED)
        raise


class _Parser(argparse.ArgumentParser):
    """Mistakes are faults like all others, and told once, not by every rank."""

    def error(self, message: str) -> NoReturn:
        raise UserError(Fault("", f"{message}; see {self.prog} --help"))


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = _Parser(
        prog="fds-dist",
        description="Learn learning-rate, momentum and weight-decay schedules by exact forward-mode hypergradients.",
        epilog="Exit status: 0 done, 2 wrong input, 1 anything else.",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        line = commands.add_parser(name, help=command.text, description=command.text)
        line.set_defaults(command=command, overrides=[])
        line.add_argument("config", nargs="?", metavar=command.source[0], help=command.source[1])
        if command.rest:
            line.add_argument("overrides", nargs="*", metavar=command.rest[0], help=command.rest[1])
        for option, settings in command.options.items():
            line.add_argument(option, **settings)
    return top


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed command line; overrides may stand before and after options.

    Raises:
        UserError: it does not parse.
    """
    # The deepspeed launcher adds this in front of all arguments; LOCAL_RANK says the same.
    arguments = [argument for argument in arguments if not re.fullmatch(r"--local[-_]rank=\d+", argument)]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        names = ", ".join(COMMANDS)
        raise UserError(Fault(arguments[0], "unknown command", f"one of {names}", nearest(arguments[0], COMMANDS)))
    options, rest = parser().parse_known_args(arguments)
    unknown = [argument for argument in rest if argument.startswith("-")]
    if unknown:
        known = ("--help", *options.command.options)
        raise UserError([Fault(name, "unknown option", suggestion=nearest(name, known)) for name in unknown])
    # `rest` stands behind an option, where argparse expects no more of the list.
    options.overrides = [*options.overrides, *rest]
    if options.config and "=" in options.config and not os.path.exists(options.config):
        options.config, options.overrides = None, [options.config, *options.overrides]
    if options.command.source is RUN_DIR and options.config is None:
        raise UserError(Fault("RUN_DIR", "is missing", RUN_DIR[1]))
    if options.command.rest is None and options.overrides:
        expected = f"{options.command.source[0]} and options alone"
        raise UserError([Fault(word, "is one too many", expected) for word in options.overrides])
    return options


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the run in order. A launcher passes the signal on that its ranks got already: the second one is ignored."""
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_launcher() -> None:
    """Asks Linux for SIGTERM when torchrun dies: one that is killed leaves its ranks behind, and the others waiting."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _explain(lines: Iterable[object], status: int) -> int:
    """Prints the lines once per node; returns `status`."""
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if local_rank == "0":
        for line in lines:
            print(f"fds-dist: {line}", file=sys.stderr, flush=True)
    else:
        with suppress(KeyboardInterrupt):  # the first has ended already
            time.sleep(FIRST_WORD_SECONDS)
    return status


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
    from fds_dist.commands.optimize import optimize

    optimize(options.config, options.overrides, resume=options.resume)
    return DONE


def _check(options: argparse.Namespace) -> int:
    from fds_dist.commands.check.command import check, print_check

    built, report = check(options.config, options.overrides, world_size=options.world_size)
    if _is_first():
        print_check(built.config, built.problem, report, built.remarks)
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from fds_dist.commands.verify import print_verification, verify

    built, verification = verify(options.config, options.overrides, steps=options.steps)
    if _is_first():
        print_verification(built.problem, verification)
    return DONE if verification.passed else FAILED


def _retrain(options: argparse.Namespace) -> int:
    from fds_dist.commands.retrain.command import retrain

    seeds = [] if options.seeds is None else [f"seeds={options.seeds}"]
    done = retrain(options.config, [*options.overrides, *seeds])
    if _is_first():
        print(f"results: {done.folder} (summary.json; of each seed history.jsonl, last.safetensors, best.safetensors)")
    return DONE


def _compare(options: argparse.Namespace) -> int:
    from fds_dist.commands.compare.command import compare
    from fds_dist.commands.compare.table import print_comparison

    comparison, folder = compare(options.config, options.overrides)
    if _is_first():
        print_comparison(comparison)
        print(f"results: {folder} (compare.json, plots)")
    return DONE


def _noise(options: argparse.Namespace) -> int:
    from fds_dist.commands.noise.command import NOISE_RUNS, NOISE_STEPS, noise
    from fds_dist.commands.noise.report import print_noise
    from fds_dist.common.console import default_console

    runs = NOISE_RUNS if options.runs is None else options.runs
    steps = NOISE_STEPS if options.steps is None else options.steps
    report, folder = noise(options.config, options.overrides, runs=runs, steps=steps)
    if _is_first():
        print_noise(report, default_console())
        print(f"results: {folder} (noise.json, plots)")
    return DONE


def _report(options: argparse.Namespace) -> int:
    from fds_dist.commands.report.command import report

    page = report([options.config, *options.overrides], options.output)
    if _is_first():
        print(f"report: {page}")
    return DONE


def _bench(options: argparse.Namespace) -> int:
    from fds_dist.commands.bench import bench, print_bench
    from fds_dist.common.console import default_console

    report = bench(options.config, options.overrides)
    if _is_first():
        if options.json:
            print(report.to_json())
        else:
            print_bench(report, default_console())
    return DONE


def _export(options: argparse.Namespace) -> int:
    from fds_dist.commands.export import export

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
