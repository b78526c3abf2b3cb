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
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from fds_dist.commands import COMMANDS, FAILED, RUN_DIR
from fds_dist.faults import Fault, UserError
from fds_dist.registry import nearest

WRONG_INPUT, INTERRUPTED = 2, 130
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
