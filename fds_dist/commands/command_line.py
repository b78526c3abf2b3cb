"""The command line as argparse reads it: commands, options, and overrides wherever they stand."""

from __future__ import annotations

import argparse
import os
import platform
import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import NoReturn

from fds_dist.commands.definitions import COMMANDS, Command
from fds_dist.commands.help_text import command_help
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import nearest

SHELLS = ("bash", "zsh", "tcsh")
"""Those for which completions can be printed."""


class _Parser(argparse.ArgumentParser):
    """Turns mistakes into faults, which are printed once and not by every rank; its help ends with the command's."""

    command: Command | None = None

    def error(self, message: str) -> NoReturn:
        raise UserError(Fault("", f"{message}; see {self.prog} --help"))

    def format_help(self) -> str:
        text = super().format_help()
        return text if self.command is None else f"{text}\n{command_help(self.command)}"


class _Version(argparse.Action):
    """`--version`: the versions of the package and of what it runs on, without importing anything of it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(
            f"fds-dist {_installed('fds-dist')}, Python {platform.python_version()}, torch {_installed('torch')}",
            flush=True,
        )
        parser.exit()


class _Completion(argparse.Action):
    """`--print-completion SHELL`: the script by which a shell completes command lines."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: object, *_: object) -> NoReturn:
        try:
            import shtab
        except ImportError:
            problem = "the package shtab is not installed"
            raise UserError(Fault("--print-completion", problem, "pip install 'fds-dist[completion]' first")) from None
        for line in _lines_of(parser):
            for argument in line._actions:
                if not argument.option_strings:  # a config, a run's folder or a file
                    argument.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, str(values)))
        parser.exit()


def _installed(package: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _lines_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of the commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = _Parser(
        prog="fds-dist",
        description="Learn learning-rate, momentum and weight-decay schedules by exact forward-mode hypergradients.",
        epilog="To begin: `fds-dist optimize digits`, or `fds-dist init` for a config of one's own. "
        "Exit status: 0 done, 2 wrong input, 1 anything else.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the versions of fds-dist, Python and torch")
    top.add_argument(
        "--print-completion",
        action=_Completion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the script that completes commands in {', '.join(SHELLS[:-1])} or {SHELLS[-1]}",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        line = commands.add_parser(name, help=command.text, description=command.text)
        line.command = command
        line.set_defaults(command=command, config=None, overrides=[])
        if command.source:
            line.add_argument("config", nargs="?", metavar=command.source.name, help=command.source.meaning)
        if command.rest:
            line.add_argument("overrides", nargs="*", metavar=command.rest.name, help=command.rest.meaning)
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
    arguments = arguments or ["--help"]
    if not arguments[0].startswith("-"):
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
    source = options.command.source
    if source and source.is_needed and options.config is None:
        raise UserError(Fault(source.name, "is missing", source.meaning))
    if options.command.rest is None and options.overrides:
        expected = f"{source.name} and options alone" if source else "options alone"
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
