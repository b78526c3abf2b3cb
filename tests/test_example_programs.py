"""The programs in `examples/` are short, say what they show, stand in the table of its README, and run to their end."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / "examples"
PROGRAMS = sorted(FOLDER.glob("*.py"))
ROW = re.compile(r"^\| \[`(\w+\.py)`\]\(\1\) \| [^|]+ \|([^|]*)\|$", re.MULTILINE)
NEEDS = dict(ROW.findall((FOLDER / "README.md").read_text(encoding="utf-8")))
"""Example → the last column of its row: the libraries to install beside fds_dist."""

MAX_LINES = 60
TIME_LIMIT = 300
"""Seconds that an example may take on two busy cores."""

WITH_FDS_DIST = {"fds_dist", "matplotlib", "numpy", "pydantic", "rich", "safetensors", "sklearn", "torch"}
WITH_FDS_DIST |= {"torchvision", "wandb", "yaml"}
"""What an installed fds_dist brings along, by the names of its modules."""


BESIDE_ANY_TORCHVISION = """
import runpy, sys
from fds_dist.common.vision import import_torchvision
import_torchvision()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program as Python does. Libraries of networks import torchvision, whose operators may not load here."""


def libraries(program: Path) -> set[str]:
    """The libraries that a program imports, wherever it does, beside those of Python and of fds_dist."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(program.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").split(".")[0])
    return modules - WITH_FDS_DIST - set(sys.stdlib_module_names)


def test_the_table_has_a_row_for_each_program() -> None:
    assert set(NEEDS) == {program.name for program in PROGRAMS}
    assert len(PROGRAMS) > 0


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_is_short_and_says_what_it_shows_and_needs(program: Path) -> None:
    source = program.read_text(encoding="utf-8")
    compile(source, program.name, "exec")
    assert len(source.splitlines()) <= MAX_LINES
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert docstring.split("\n\n")[0].endswith("."), "the docstring begins with a sentence that says what it shows"
    assert {name for name in libraries(program) if f"`{name}`" not in NEEDS[program.name]} == set()


def test_lint_and_types_cover_the_programs() -> None:
    """ruff reads every file below the project; pyright those that the settings name."""
    settings = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    included = re.search(r"^include = (\[.*\"tests\".*\])$", settings, re.MULTILINE)
    assert included is not None
    assert "examples" in ast.literal_eval(included[1])


@pytest.mark.examples
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_runs_to_its_end(program: Path, tmp_path: Path) -> None:
    if missing := sorted(name for name in libraries(program) if find_spec(name) is None):
        pytest.skip(f"{program.name} needs {', '.join(missing)}")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *(["-c", BESIDE_ANY_TORCHVISION] if libraries(program) else []), str(program)],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120", "MPLBACKEND": "agg"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(f"{program.name}: {time.monotonic() - began:.1f} s", *done.stdout.splitlines()[-5:], sep="\n")
