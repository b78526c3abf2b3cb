"""Names and paths with umlauts, spaces and emoji, and a locale that knows ASCII alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from launching import clean_environment

from fds_dist.schedule.schedule import load_schedule

CONFIG = """\
task: {name: "own_tasks:blobs"}
inner: {epochs: 1, groups: {größe: bias, zwei Worte 🚀: '.*'}}
hyperparameters: {lr: {init: 0.1, buckets: 2, per_group: true}, momentum: {init: 0.5}}
outer: {steps: 1, judge_seeds: 0}
tracking: {tensorboard: true}
output_dir: Läufe 🚀
name: größe 1 🚀
"""
RUN = "Läufe 🚀/größe 1 🚀"

LINES = [
    ["check", "größe 🚀.yaml"],
    ["optimize", "größe 🚀.yaml"],
    ["optimize", "--resume", RUN, "outer.steps=2"],
    ["config", RUN],
    ["export", RUN],
    ["export", RUN, "--format", "csv"],
    ["export", RUN, "--format", "json", "--output", "schön.json"],
    ["report", RUN, "--output", "Bericht ä"],
    ["retrain", RUN, "epochs=1"],
    ["config", "inner.groups.größe"],
    ["optimize", "Größe.yaml"],
    ["optimize", "größe 🚀.yaml", "größe=3"],
]
PROGRAM = """\
import json, sys
from fds_dist.cli import main
for line in json.loads(sys.argv[1]):
    print("status", main(line), flush=True)
"""


def run(lines: list[list[str]], folder: Path, **locale: str) -> subprocess.CompletedProcess[str]:
    """What a process with this locale makes of the command lines, one after the other."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(lines)]
    environment = {
        key: value for key, value in clean_environment().items() if key not in ("LANG", "LC_ALL", "LC_CTYPE")
    }
    return subprocess.run(
        command, cwd=folder, env=environment | locale, capture_output=True, encoding="utf-8", check=False, timeout=600
    )


def test_no_name_and_no_locale_ends_a_command(tmp_path: Path) -> None:
    (tmp_path / "größe 🚀.yaml").write_text(CONFIG, encoding="utf-8")
    command = run(LINES, tmp_path, LC_ALL="C", PYTHONIOENCODING="ascii")
    assert command.returncode == 0, command.stderr
    statuses = [line for line in command.stdout.splitlines() if line.startswith("status ")]
    assert statuses == ["status 0"] * (len(LINES) - 2) + ["status 2"] * 2
    assert "Traceback" not in command.stderr and "Glyph" not in command.stderr and command.stdout.isascii()
    assert {"lr.größe", "lr.zwei Worte 🚀", "momentum"} == set(load_schedule(tmp_path / RUN).values)
    snippet = command.stdout.split("status 0\n")[LINES.index(["export", RUN])]
    content: dict[str, dict[str, object]] = {}
    exec(snippet, content)  # escapes are right in Python's texts
    assert {"lr.größe", "lr.zwei Worte 🚀"} <= set(content["SCHEDULE"])


def test_a_file_system_in_ascii_is_named_in_one_line(tmp_path: Path) -> None:
    ascii_files = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = run([["init", "größe"]], tmp_path, **ascii_files)
    assert command.stdout.splitlines() == ["status 2"]
    (line,) = command.stderr.splitlines()
    assert line.startswith("fds-dist: this locale's files are called in ascii, which lacks ")
    assert line.endswith("expected PYTHONUTF8=1, or a locale in UTF-8")
    assert list(tmp_path.iterdir()) == []
