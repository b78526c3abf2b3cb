"""Every command takes the folder of a run where a config goes, and keys written as options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fds_dist.cli import main
from fds_dist.commands.command_line import parse
from fds_dist.commands.definitions import COMMANDS

CONFIG = """\
task: {name: "own_tasks:blobs"}
inner: {epochs: 1}
hyperparameters: {lr: {init: 0.1, buckets: 2}}
outer: {steps: 1, judge_seeds: 0}
compare: {methods: [fds, random], seeds: 1, judge_seeds: 1, budget: 200}
name: first
"""
LINES = [
    "check runs/first",
    "config runs/first",
    "verify runs/first --steps 2",
    "noise runs/first --steps 4 --runs 4 --name=studies",
    "compare runs/first --name=studies",
    "bench runs/first --seconds 1",
    "export runs/first",
    "report runs/first",
    "retrain runs/first --epochs=1 --seed 3",
]
CONFIG_TAKERS = [name for name, command in COMMANDS.items() if command.source and command.source.name == "CONFIG"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run `runs/first` is."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "config.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["optimize", "config.yaml"]) == 0
    return folder


def test_the_lines_are_those_of_all_commands_that_take_a_config() -> None:
    assert {"optimize", *(line.split()[0] for line in LINES)} >= set(CONFIG_TAKERS)


@pytest.mark.parametrize("line", LINES)
def test_the_folder_of_a_run_stands_for_its_config(
    folder: Path, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    history = Path("runs/first/history.jsonl").read_text()
    assert main(line.split()) == 0
    assert capsys.readouterr().out
    assert Path("runs/first/history.jsonl").read_text() == history


def test_optimizing_a_run_again_makes_a_new_folder_and_says_how_to_continue(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["optimize", "runs/first"]) == 0
    told = capsys.readouterr().out
    assert "runs/first is the folder of a run: its config is read; to continue that run: --resume runs/first" in told
    first, second = (json.loads(Path(f"runs/{name}/schedule.json").read_text()) for name in ("first", "first-2"))
    assert first["hyperparameters"] == second["hyperparameters"]


@pytest.mark.parametrize("command", [*CONFIG_TAKERS, "config", "retrain"])
@pytest.mark.parametrize(
    ("written", "override"),
    [
        (["--outer.steps=3"], "outer.steps=3"),
        (["--outer.steps", "3"], "outer.steps=3"),
        (["--outer.target", "-1.5"], "outer.target=-1.5"),
        (["--outer.target=-1.5"], "outer.target=-1.5"),
        (["--inner.epochs=[1, 2, 3]"], "inner.epochs=[1, 2, 3]"),
        (["--inner.epochs", "[1, 2]"], "inner.epochs=[1, 2]"),
        (["--hyperparameters.lr", "{init: 0.1, buckets: 2}"], "hyperparameters.lr={init: 0.1, buckets: 2}"),
        (
            ["--hyperparameters.lr.per_group.zwei Worte.init", "1e-3"],
            "hyperparameters.lr.per_group.zwei Worte.init=1e-3",
        ),
        (["--seed", "4"], "seed=4"),
        (["outer.steps = 3"], "outer.steps = 3"),
    ],
)
def test_keys_may_be_written_as_options(command: str, written: list[str], override: str) -> None:
    for line in ([command, "first", *written], [command, *written, "first"]):
        options = parse(line)
        assert (options.config, options.overrides) == ("first", [override])
