"""The command line: parse, call, print. The same line works bare, under torchrun, deepspeed and srun.

Exit status: 0 done, 2 the user's input is wrong (one line per fault), 1 anything else.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import NoReturn

from fds_dist.faults import Fault, UserError
from fds_dist.registry import nearest

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
FIRST_WORD_SECONDS = 3.0
"""How long other ranks of a node wait before they exit.

The launcher ends all ranks when one exits; the node's first rank, which prints why, must come to it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except UserError as error:
        return _explain(error.faults, WRONG_INPUT)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        from fds_dist.run import EXPLAINED

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
    for name, (function, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        what = ("RUN_DIR", "the folder of a run") if name in ("retrain", "report") else ("CONFIG", "a YAML file")
        command.add_argument("config", nargs="?", metavar=what[0], help=what[1])
        rest = ("key=value", "override a key, e.g. outer.steps=5")
        if name == "report":
            rest = ("RUN_DIR", "more runs, to be shown side by side")
        command.add_argument("overrides", nargs="*", default=[], metavar=rest[0], help=rest[1])
        if name == "optimize":
            command.add_argument("--resume", metavar="RUN_DIR", help="go on with the run in this folder")
        if name == "check":
            command.add_argument("--world-size", type=int, metavar="N", help="plan for N ranks (default: as launched)")
        if name in ("verify", "noise"):
            default = "at most 50" if name == "verify" else "250"
            command.add_argument("--steps", type=int, metavar="N", help=f"inner steps (default: {default})")
        if name == "retrain":
            command.add_argument("--seeds", type=int, metavar="N", help="how many retrainings (default: 1)")
        if name == "report":
            command.add_argument("--output", metavar="DIR", help="where to write (default: RUN_DIR/report)")
        if name == "bench":
            command.add_argument("--json", action="store_true", help="print one JSON object")
        if name == "noise":
            command.add_argument("--runs", type=int, metavar="N", help="inner runs (default: 100)")
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
        raise UserError([Fault(name, "unknown option", suggestion=nearest(name, OPTIONS)) for name in unknown])
    # `rest` stands behind an option, where argparse expects no more of the list.
    options.overrides = [*options.overrides, *rest]
    if options.config and "=" in options.config and not os.path.exists(options.config):
        options.config, options.overrides = None, [options.config, *options.overrides]
    return options


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the run in order. A launcher passes the signal on that its ranks got already: the second one is ignored."""
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt


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

    if options.config is None:
        raise UserError(Fault("RUN_DIR", "is missing", "the folder of a run"))
    seeds = [] if options.seeds is None else [f"seeds={options.seeds}"]
    retrain(options.config, [*options.overrides, *seeds])
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

    if options.config is None:
        raise UserError(Fault("RUN_DIR", "is missing", "the folder of a run, or several"))
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


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "optimize": (_optimize, "learn the schedules: the main job"),
    "check": (_check, "no training: who owns which tangent, memory and time per rank, the resolved config"),
    "verify": (_verify, "this task's hypergradients against reverse mode and finite differences, in float64"),
    "retrain": (_retrain, "train from scratch on all training data with the schedule that a run learned"),
    "compare": (_compare, "FDS beside greedy, random search, TPE and Hyperband at equal compute"),
    "bench": (_bench, "the cost model's figures on this machine: step cost, scaling, memory, precision"),
    "report": (_report, "one self-contained HTML page and figures of a run, or of several side by side"),
    "noise": (_noise, "hypergradient noise against window size; recommends bucket counts"),
}
OPTIONS = ("--help", "--json", "--output", "--resume", "--runs", "--seeds", "--steps", "--world-size")


def _is_first() -> bool:
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0


def _explain(lines: Iterable[object], status: int) -> int:
    """Prints the lines once per node; returns `status`."""
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if local_rank == "0":
        for line in lines:
            print(f"fds-dist: {line}", file=sys.stderr, flush=True)
    else:
        time.sleep(FIRST_WORD_SECONDS)
    return status
