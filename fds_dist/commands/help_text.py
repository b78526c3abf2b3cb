"""What the help of a command says after its arguments: examples, and the keys that its line may override."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from fds_dist.commands.definitions import COMMANDS, Command
from fds_dist.config.keys import Key, keys_of

WIDTH = 79
"""Columns of `--help`."""


def command_help(command: Command) -> str:
    """The command's examples, and its keys by section, each with the first sentence of its meaning."""
    lines = ["examples:", *(f"  fds-dist {line}" for line in command.examples)]
    if command.keys is not None:
        lines += ["", "keys, as key=value or --key=value; `fds-dist config KEY` says more about one:"]
        keys = keys_of(command.keys())
        if command is not COMMANDS["compare"]:
            keys = [key for key in keys if key.name != "compare"]
        single = [key for key in keys if not key.below]
        for key in keys:
            if key.below:
                lines += ["", *_wrapped(f"{key.name}: {key.sentence}", ""), *_entries(_listed(key))]
        lines += ["", *(["others:"] if len(single) < len(keys) else []), *_entries(single)]
    return "\n".join(lines) + "\n"


def _listed(key: Key) -> Iterator[Key]:
    """The keys below a section, down to the values; those of a hyperparameter without what lies below them."""
    for each in key.below:
        if each.below and each.takes == "a mapping":
            yield from _listed(each)
        else:
            yield each


def _entries(keys: Iterable[Key]) -> Iterator[str]:
    for key in keys:
        yield f"  {key.name}"
        yield from _wrapped(key.sentence, " " * 6)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
