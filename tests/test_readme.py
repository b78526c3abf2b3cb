"""The README's code runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
TESTED = re.findall(r"<!-- test: ([\w ]+) -->\n```python\n(.*?)```", README, re.DOTALL)


def test_ones_own_task_takes_under_25_lines() -> None:
    code = dict(TESTED)["own task"]
    assert len(code.strip().splitlines()) < 25


CHECKS = {
    # On fresh seeds, from about .67 to .13 and from 60 % to 95 %. The bounds leave room for other roundings.
    "own task": """
start, end = result.verdict.candidates["start"], result.verdict.candidates[result.verdict.result]
assert end.val_loss < 0.5 * start.val_loss, (start, end)
assert end.val_accuracy > start.val_accuracy + 0.2, (start, end)
"""
}
"""The name of a piece of code → what holds after it."""


@pytest.mark.parametrize(("name", "code"), TESTED, ids=[name for name, _ in TESTED])
def test_the_code_runs_and_does_what_it_says(name: str, code: str, tmp_path: Path) -> None:
    script = code + CHECKS.get(name, "")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
