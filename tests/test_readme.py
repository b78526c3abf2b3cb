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


@pytest.mark.parametrize(("name", "code"), TESTED, ids=[name for name, _ in TESTED])
def test_the_code_runs(name: str, code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
