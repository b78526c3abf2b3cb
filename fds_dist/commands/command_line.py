"""The command line as argparse reads it: commands, options, and overrides wherever they stand."""

from __future__ import annotations

import argparse
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NoReturn

from fds_dist.commands.definitions import COMMANDS, CONFIG, Command
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import nearest

HELP_WIDTH = 79
"""Columns of `--help`."""


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
