"""A signal while a process starts, or ends: status 130 or 143, and not a word."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from launching import PATIENCE, clean_environment

CONFIG = """
task: {name: "own_tasks:blobs"}
hyperparameters: {lr: {init: 0.1, step: 0.05, buckets: 2}}
outer: {optimizer: sign, steps: 1}
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PIPES: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
KILLS = 48
IMPORTED = "import time:"
"""How a line of `python -X importtime` begins, which is written when a module is imported."""
FIRST = " fds_dist.commands\n"
"""How the line of the first module ends that the program imports after it has begun to listen to signals."""


@contextmanager
def starting(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Iterator[str]]]:
    """A run in a process of its own, and its lines for the modules that it imports."""
    (folder / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-X", "importtime", "-m", "fds_dist", "optimize", "config.yaml"]
    with subprocess.Popen(command, cwd=folder, env=clean_environment(), text=True, **PIPES) as process:
        assert process.stderr is not None
        try:
            yield process, itertools.dropwhile(lambda line: not line.endswith(FIRST), process.stderr)
        finally:
            process.kill()


def signalled(folder: Path, number: signal.Signals, imports: int) -> tuple[int, str]:
    """Status and words of a start that gets a signal when so many modules of the program are imported."""
    with starting(folder) as (process, lines):
        assert len(list(itertools.islice(lines, imports))) == imports
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
        return said(process.returncode, err)


def said(status: int, err: str) -> tuple[int, str]:
    """The status as a shell tells it, and what was written beside the times of imports."""
    words = [line for line in err.splitlines() if not line.startswith(IMPORTED)]
    return 128 - status if status < 0 else status, "\n".join(words)


@pytest.mark.parametrize(("number", "imports"), [*zip(SIGNALS * 2, (1, 60, 400, 900), strict=True)])
def test_a_signal_while_the_program_is_imported_ends_it_without_a_word(
    tmp_path: Path, number: signal.Signals, imports: int
) -> None:
    assert signalled(tmp_path, number, imports) in [(130, ""), (128 + number, "")]


@pytest.fixture(scope="module")
def all_imports(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many modules a whole run imports."""
    with starting(tmp_path_factory.mktemp("whole")) as (process, lines):
        imports = sum(line.startswith(IMPORTED) for line in lines)
        assert process.wait(PATIENCE) == 0
        return imports


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(KILLS))
def test_48_signals_spread_over_the_start_end_it_without_a_word(tmp_path: Path, all_imports: int, kill: int) -> None:
    number = SIGNALS[kill % 2]
    assert signalled(tmp_path, number, 1 + kill * all_imports // KILLS) in [(130, ""), (128 + number, "")]


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("late", ["atexit.register(wait)", "threading.Thread(target=after_main).start()"])
def test_a_signal_while_the_interpreter_ends_leaves_at_once(number: signal.Signals, late: str) -> None:
    """In a function that it calls at its end, and in a thread that it waits for."""
    program = f"""
import atexit, os, sys, threading, time
import fds_dist.cli
from fds_dist.__main__ import main

def wait():
    os.kill(os.getpid(), {int(number)})
    time.sleep({PATIENCE})

def after_main():
    threading.main_thread().join()
    wait()

fds_dist.cli.main = lambda: 0
{late}
sys.exit(main())
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=clean_environment(), text=True, timeout=PATIENCE, **PIPES)
    assert said(ended.returncode, ended.stderr) == (128 + number, "")
