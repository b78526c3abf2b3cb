"""The command line: parse, call, print. The same line works bare, under torchrun, deepspeed and srun.

Exit status: 0 done, 2 the user's input is wrong (one line per fault), 1 anything else.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

from fds_dist.faults import UserError

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130
FIRST_WORD_SECONDS = 3.0
"""How long other ranks of a node wait before they exit over wrong input.

The launcher ends all ranks when one exits; the node's first rank, which prints the faults, must come to it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    options = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except UserError as error:
        return _report_faults(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        from fds_dist.engine.outer_loop import HypergradientsNotFinite

        if isinstance(error, HypergradientsNotFinite):  # an end of the run that needs no traceback
            print(f"fds-dist: {error}", file=sys.stderr)
            return FAILED
        raise


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="fds-dist",
        description="Learn learning-rate, momentum and weight-decay schedules by exact forward-mode hypergradients.",
        epilog="Exit status: 0 done, 2 wrong input, 1 anything else.",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, function, text in (
        ("optimize", _optimize, "learn the schedules: the main job"),
        ("check", _check, "no training: the resolved config, who owns which tangent, memory and time per rank"),
        ("verify", _verify, "this task's hypergradients against reverse mode and finite differences, in float64"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        command.add_argument("config", nargs="?" if name == "optimize" else None, metavar="CONFIG", help="a YAML file")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, e.g. outer.steps=5")
        # The deepspeed launcher adds this; LOCAL_RANK says the same.
        command.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
        if name == "optimize":
            command.add_argument("--resume", metavar="RUN_DIR", help="go on with the run in this folder")
        if name == "check":
            command.add_argument("--world-size", type=int, metavar="N", help="plan for N ranks (default: as launched)")
        if name == "verify":
            command.add_argument("--steps", type=int, metavar="N", help="inner steps (default: at most 50)")
    return top


def _optimize(options: argparse.Namespace) -> int:
    from fds_dist.api import optimize

    config, overrides = options.config, options.overrides
    if options.resume is not None and config is not None and "=" in config:
        config, overrides = None, [config, *overrides]
    optimize(config, overrides, resume=options.resume)
    return DONE


def _check(options: argparse.Namespace) -> int:
    from fds_dist.api import check
    from fds_dist.tables import print_check

    built, report = check(options.config, options.overrides, world_size=options.world_size)
    if int(os.environ.get("RANK", "0")) == 0:
        print_check(built.config, built.problem, report, built.remarks)
    return DONE


def _verify(options: argparse.Namespace) -> int:
    from fds_dist.api import verify
    from fds_dist.tables import print_verification

    built, verification = verify(options.config, options.overrides, steps=options.steps)
    if int(os.environ.get("RANK", "0")) == 0:
        print_verification(built.problem, verification)
    return DONE if verification.passed else FAILED


def _report_faults(error: UserError) -> int:
    """One line per fault, once per node."""
    if int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) == 0:
        for fault in error.faults:
            print(f"fds-dist: {fault}", file=sys.stderr, flush=True)
    else:
        time.sleep(FIRST_WORD_SECONDS)
    return WRONG_INPUT
