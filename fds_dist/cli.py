"""The command line: parse, call, print. The same line works bare, under torchrun, deepspeed and srun.

Exit status: 0 done, 2 the user's input is wrong (one line per fault), 130 ended by a signal, 1 anything else.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from fds_dist.commands import FAILED, WRONG_INPUT, CommandFailed
from fds_dist.commands.command_line import parse
from fds_dist.commands.definitions import CONFIG
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import WriteFailed, lost_file
from fds_dist.common.interruptions import INTERRUPTED, end_on_signals, was_signalled
from fds_dist.common.out_of_memory import OutOfMemory, is_out_of_memory, memory_text
from fds_dist.common.output import name_output
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.launchers import told_local_rank

FIRST_WORD_SECONDS = 3.0
"""How long the other ranks of a node wait before they exit.

The launcher ends all ranks when one exits; the node's first rank, which prints why, needs time to do so.
"""

LEFT_OUT = ("torch", "torchvision", "numpy", "safetensors", "sklearn", "matplotlib", "jinja2", "wandb")
"""Dependencies that an installation for reading schedules alone does without."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    atexit.register(gc.freeze)  # or the interpreter's last collection walks through all of PyTorch: a third of a second
    told: list[Fault] = []
    end_on_signals()
    name_output()
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        told = _tell_config_faults(options)
        status = options.command.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if was_signalled():  # libraries make other errors of an interruption
            return INTERRUPTED
        return _explained(error, told)


def _explained(error: Exception, told: Sequence[Fault]) -> int:
    """Prints what a person should know of the error, without the faults that were `told` before; returns the status.

    Raises:
        Exception: the error itself, if it is none that has an explanation.
    """
    if isinstance(error, UserError):
        return _explain([fault for fault in error.faults if fault not in told], WRONG_INPUT)
    if isinstance(error, CommandFailed | WriteFailed):
        return _explain([error], FAILED)
    if lost := lost_file(error):
        return _explain([lost], FAILED)
    if isinstance(error, ModuleNotFoundError) and error.name in LEFT_OUT:
        line = f"this command needs {error.name}, which is not installed; expected pip install with all dependencies"
        return WRONG_INPUT if told else _explain([line], FAILED)
    if isinstance(error, UnicodeEncodeError):  # a name that this locale's file names cannot have
        problem = f"this locale's files are called in {sys.getfilesystemencoding()}, which lacks {_lacking(error)}"
        return _explain([Fault("", problem, "PYTHONUTF8=1, or a locale in UTF-8")], WRONG_INPUT)
    from fds_dist.commands.optimize.search import EXPLAINED

    if isinstance(error, EXPLAINED):
        # Where the first rank of the node is lost, another one tells it.
        return _explain([error], FAILED, getattr(error, "speaks", None))
    if is_out_of_memory(error):  # on whichever rank it is
        _print([OutOfMemory(memory_text(error))])
        return FAILED
    raise error


def _lacking(error: UnicodeEncodeError) -> str:
    """The characters that could not be written."""
    return ascii(error.object[error.start : error.end])


def _tell_config_faults(options: argparse.Namespace) -> list[Fault]:
    """Prints what is wrong with the config alone, and returns it: without PyTorch, whose import takes a while.

    The command then finds the rest: what is wrong with the things that the config names.

    Raises:
        UserError: there is no config to go on with.
    """
    if options.command.source is not CONFIG or options.config is None:
        return []
    from fds_dist.config import read_draft

    draft = read_draft(options.config, options.overrides)
    if draft.config is None and read_environment().world_size == 1:
        raise UserError(draft.faults)  # there is nothing more to find, and no other rank that has to know
    if draft.config is None and read_environment().rank:
        return []  # perhaps a file that a network file system shows late: see `await_files`
    if _is_first_here():
        _print(draft.faults)
    return draft.faults


def _explain(lines: Iterable[object], status: int, speaks: bool | None = None) -> int:
    """Prints the lines once per node; returns `status`.

    Args:
        speaks: whether this rank is the one that prints; None: the first one does.
    """
    if _is_first_here() if speaks is None else speaks:
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
