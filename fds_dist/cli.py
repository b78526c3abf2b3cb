"""The command line: parse, call, print. The same line works bare, under torchrun, deepspeed and srun.

Exit status: 0 done, 2 the user's input is wrong (one line per fault), 1 anything else.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import gc
import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from fds_dist.commands import FAILED, INTERRUPTED, WRONG_INPUT, CommandFailed
from fds_dist.commands.definitions import COMMANDS, CONFIG, Command
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import nearest
from fds_dist.distributed.launchers import told_local_rank

FIRST_WORD_SECONDS = 3.0
"""How long the other ranks of a node wait before they exit.

The launcher ends all ranks when one exits; the node's first rank, which prints why, needs time to do so.
"""
PR_SET_PDEATHSIG = 1
"""Of Linux's `prctl`: which signal a process gets when its parent dies."""

MORE_MEMORY = "expected a smaller tangents.chunk_size, a larger inner.accumulate or mesh.data, or model.checkpointing"

HELP_WIDTH = 79
"""Columns of `--help`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    atexit.register(gc.freeze)  # or the interpreter's last collection walks through all of PyTorch: a third of a second
    told: list[Fault] = []
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        _end_with_launcher()
        told = _tell_config_faults(options)
        return options.command.run(options)
    except UserError as error:
        return _explain([fault for fault in error.faults if fault not in told], WRONG_INPUT)
    except CommandFailed as error:
        return _explain([error], FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        from fds_dist.commands.optimize.search import EXPLAINED

        if isinstance(error, EXPLAINED):
            return _explain([error], FAILED)
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, on whichever rank it is
            _print([f"the device is out of memory ({str(error).splitlines()[0]}); {MORE_MEMORY}"])
            return FAILED
        raise


class _Parser(argparse.ArgumentParser):
    """Turns mistakes into faults, which are printed once and not by every rank; its help lists the command's keys."""

    command: Command | None = None

    def error(self, message: str) -> NoReturn:
        raise UserError(Fault("", f"{message}; see {self.prog} --help"))

    def format_help(self) -> str:
        text = super().format_help()
        if self.command is None or self.command.keys is None:
            return text
        return f"{text}\n{keys_text(self.command)}"


def keys_text(command: Command) -> str:
    """The keys that the command's line may override, each with the first sentence of its meaning."""
    from fds_dist.config.explain import key_meanings

    if command.keys is None:
        return ""
    meanings = key_meanings(command.keys())
    if command is not COMMANDS["compare"]:
        meanings = {key: meaning for key, meaning in meanings.items() if not key.startswith("compare.")}
    lines, indent = ["keys:"], " " * 6
    for key, meaning in meanings.items():
        sentence = re.split(r"(?<=\.) (?=[A-Z])", " ".join(meaning.split()))[0]
        lines += [f"  {key}", *textwrap.wrap(sentence, HELP_WIDTH, initial_indent=indent, subsequent_indent=indent)]
    return "\n".join(lines) + "\n"


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
        line.command = command
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
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in COMMANDS:
            names = ", ".join(COMMANDS)
            raise UserError(Fault(arguments[0], "unknown command", f"one of {names}", nearest(arguments[0], COMMANDS)))
        arguments = [arguments[0], *with_overrides(arguments[1:], COMMANDS[arguments[0]])]
    options, rest = parser().parse_known_args(arguments)
    unknown = [argument for argument in rest if argument.startswith("-")]
    if unknown:
        known = ("--help", *options.command.options)
        raise UserError([Fault(name, "unknown option", suggestion=nearest(name, known)) for name in unknown])
    # `rest` stands behind an option, where argparse expects no more of the list.
    options.overrides = [*options.overrides, *rest]
    if options.config and "=" in options.config and not os.path.exists(options.config):
        _take_config_from_overrides(options)
    source, meaning = options.command.source
    if options.command.source is not CONFIG and options.config is None:
        raise UserError(Fault(source, "is missing", meaning))
    if options.command.rest is None and options.overrides:
        expected = f"{source} and options alone"
        raise UserError([Fault(word, "unexpected argument", expected) for word in options.overrides])
    return options


def _take_config_from_overrides(options: argparse.Namespace) -> None:
    """Where the line begins with an override, the first word that is none is the config."""
    words = [options.config, *options.overrides]
    options.config = next((word for word in words if "=" not in word), None)
    if options.config is not None:
        words.remove(options.config)
    options.overrides = words


def with_overrides(arguments: Sequence[str], command: Command) -> Iterator[str]:
    """The arguments, with keys that are written as options (`--outer.steps=3`, `--outer.steps 3`) as overrides.

    Raises:
        UserError: such a key has no value.
    """
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        key = name.removeprefix("--")
        if key == name or name in command.options or not _is_key(key, command):
            yield word
            continue
        if not equals:
            value = next(words, "")
        if not equals and (not value or value.startswith("--")):
            raise UserError(Fault(name, "has no value", f"{key}=VALUE"))
        yield f"{key}={value}"


def _is_key(name: str, command: Command) -> bool:
    """Whether the command may override a key of this name; a dotted name can be nothing else."""
    if command.keys is None or not name:
        return False
    return "." in name or name in command.keys().model_fields


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the run in order. A launcher passes the signal on that its ranks got already: the second one is ignored."""
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_launcher() -> None:
    """Asks Linux for SIGTERM when torchrun dies: one that is killed leaves its ranks behind, and the others waiting."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _tell_config_faults(options: argparse.Namespace) -> list[Fault]:
    """Prints what is wrong with the config alone, and returns it: without PyTorch, whose import takes a while.

    The command then finds the rest: what is wrong with the things that the config names.
    """
    if options.command.source is not CONFIG or options.config is None:
        return []
    from fds_dist.config import read_draft

    faults = read_draft(options.config, options.overrides).faults
    if _is_first_here():
        _print(faults)
    return faults


def _explain(lines: Iterable[object], status: int) -> int:
    """Prints the lines once per node; returns `status`."""
    if _is_first_here():
        _print(lines)
    else:
        with suppress(KeyboardInterrupt):  # the first has ended already
            time.sleep(FIRST_WORD_SECONDS)
    return status


def _is_first_here() -> bool:
    """Whether this is the first rank of its node, the one that tells what is wrong."""
    return told_local_rank(os.environ) == "0"


def _print(lines: Iterable[object]) -> None:
    for line in lines:
        print(f"fds-dist: {line}", file=sys.stderr, flush=True)
