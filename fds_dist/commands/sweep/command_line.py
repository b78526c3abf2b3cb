"""The command of a sweep: the config that it runs, and its macros, which W&B's agent fills in."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from fds_dist.common.faults import Fault
from fds_dist.common.kinds import wrong_kind
from fds_dist.common.registry import nearest

VALUES = "${args_no_hyphens}"
"""The macro that W&B replaces by the job's values, as `key=value`."""

PATTERN = "[torchrun, --standalone, --nproc-per-node, N, -m, fds_dist, optimize, CONFIG, '${args_no_hyphens}']"
ENV, INTERPRETER, PROGRAM = "${env}", "${interpreter}", "${program}"
PROGRAMS = ("fds_dist", "fds-dist", "single_node.sh", "deepspeed.sh")
_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


@dataclass(frozen=True)
class Command:
    """The line that every job of a sweep runs."""

    parts: tuple[str, ...]
    """The parts in the file, with W&B's macros filled in, except those of the values and of the environment."""
    config: str
    """The config's path."""
    before: tuple[str, ...]
    """Overrides before the values."""
    after: tuple[str, ...]
    """Overrides after the values; these win."""

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """The overrides of a job with these values, in order."""
        return [*self.before, *as_overrides(values), *self.after]

    def line(self, values: Mapping[str, Any]) -> list[str]:
        """The job's program and arguments, as W&B's agent would start them."""
        line: list[str] = []
        for part in self.parts:
            line += as_overrides(values) if part == VALUES else [_filled_in(part)]
        return line


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """`key=value` as W&B writes it."""
    return [f"{name}={value}" for name, value in values.items()]


def read_command(content: Any, program: Any, faults: list[Fault]) -> Command | None:
    """The file's `command`; None, with faults added to `faults`, if the command does not show its config."""
    if not isinstance(content, list) or not content:
        faults.append(Fault("command", wrong_kind(content) if content else "is missing", PATTERN))
        return None
    macros = {ENV: "/usr/bin/env", INTERPRETER: "python", PROGRAM: str(program or "")}
    parts = [macros.get(str(part), str(part)) for part in content]
    faults += _macro_faults(parts)
    if shutil.which(parts[0]) is None:
        expected = "a program on the PATH (launch/setup.sh installs torchrun)"
        faults.append(Fault("command", f"there is no program {parts[0]}", expected))
    for position in range(1, len(parts)):
        if parts[position] == "optimize" and PurePath(parts[position - 1]).name in PROGRAMS:
            return _after_optimize(parts, position + 1, faults)
    faults.append(Fault("command", "does not run `fds_dist optimize`", PATTERN))
    return None


def _macro_faults(parts: Sequence[str]) -> Iterator[Fault]:
    known = (VALUES, ENV, INTERPRETER, PROGRAM)
    others = [part for part in parts if re.fullmatch(r"\$\{.*\}", part) and part != VALUES]
    for part in others:
        if not _VARIABLE.fullmatch(part):
            nearest_name = VALUES if part.startswith("${args") else nearest(part, known)
            yield Fault("command", f"{part} is not supported", f"one of {', '.join(known)}", nearest_name)
    for name in dict.fromkeys(name for part in parts for name in _VARIABLE.findall(part)):
        if name not in os.environ:
            expected = "a value (fds-dist sweep sets NPROC)"
            yield Fault("command", f"the environment variable {name} is not set", expected)
    if VALUES not in parts and not any(part.startswith("${args") for part in others):
        yield Fault("command", f"has no {VALUES}: the values would not reach the jobs", PATTERN)


def _after_optimize(parts: Sequence[str], start: int, faults: list[Fault]) -> Command | None:
    """The command whose parts from `start` on are the arguments of `optimize`."""
    rest = [_filled_in(part) for part in parts[start:] if not part.startswith("${args") or part == VALUES]
    config, *more = [part for part in rest if part != VALUES and "=" not in part and not part.startswith("-")] or [""]
    if not config:
        faults.append(Fault("command", "names no config", PATTERN))
    for part in [part for part in rest if part.startswith("-")] + more:
        faults.append(Fault("command", f"{part} is not allowed after optimize", "CONFIG, key=value and the values"))
    at = rest.index(VALUES) if VALUES in rest else len(rest)
    before, after = (tuple(part for part in side if "=" in part) for side in (rest[:at], rest[at:]))
    return Command(tuple(parts), config, before, after) if config else None


def _filled_in(part: str) -> str:
    """The part with environment variables filled in; like W&B, an unset variable becomes its name."""
    return _VARIABLE.sub(lambda match: os.environ.get(match.group(1), match.group(1)), part)
