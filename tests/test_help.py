"""Looking around: versions, help, keys and schemas, without torch; and the examples of the help."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launching import clean_environment

from fds_dist.cli import main
from fds_dist.commands.command_line import parse
from fds_dist.commands.config import explain
from fds_dist.commands.definitions import COMMANDS
from fds_dist.common.faults import UserError
from fds_dist.config import Config
from fds_dist.config.keys import Key, all_keys, keys_of

Capture = pytest.CaptureFixture[str]

EXAMPLES = [(name, line) for name, command in COMMANDS.items() for line in command.examples]
CHEAP = [line for name, line in EXAMPLES if name in ("init", "config", "schema")] + ["check digits"]


def ended(*arguments: str) -> object:
    """The status of a command line that argparse ends."""
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    return raised.value.code


def test_without_arguments_the_help_is_shown(capsys: Capture) -> None:
    assert ended() == 0
    bare = capsys.readouterr()
    assert ended("--help") == 0
    assert bare == capsys.readouterr() and bare.err == ""
    assert bare.out.startswith("usage: fds-dist") and "fds-dist init" in bare.out


def test_versions(capsys: Capture) -> None:
    assert ended("--version") == 0
    assert re.fullmatch(r"fds-dist \d+\.\d+\.\d+, Python 3\.\d+\.\d+, torch 2\.\S+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--version",
        "check --help",
        "retrain --help",
        "config",
        "config outer.steps",
        "config digits",
        "schema",
        "init --task",
    ],
)
def test_looking_around_needs_no_torch(line: str, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from fds_dist.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *line.split()]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=clean_environment())
    assert told.stdout and told.stderr == ""


def test_a_config_that_is_not_there_is_told_without_torch(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from fds_dist.cli import main; sys.exit(main(['check', 'digts']))"
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=clean_environment())
    (line,) = told.stderr.splitlines()
    assert told.returncode == 2 and line.endswith("did you mean digits?")


@pytest.mark.parametrize(("name", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_examples_parse(name: str, line: str, capsys: Capture) -> None:
    options = parse(shlex.split(line))
    assert options.command is COMMANDS[name]
    assert ended(name, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"  fds-dist {line}" in lines
    assert max(map(len, lines)) <= 90  # an example is never broken


@pytest.mark.parametrize("line", CHEAP)
def test_cheap_examples_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 0
    told = capsys.readouterr()
    assert told.out and told.err == ""


def test_the_keys_of_the_help_are_in_groups(capsys: Capture) -> None:
    ended("optimize", "--help")
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("outer: How hypergradients move the hyperparameters.")
    assert lines[start - 1] == "" and lines[start + 1] == "  outer.optimizer"
    assert lines.index("others:") < lines.index("  seed")
    assert "  compare.methods" not in lines
    ended("compare", "--help")
    assert "  compare.methods" in capsys.readouterr().out.splitlines()


# --- config ---


@pytest.mark.parametrize("key", list(all_keys(keys_of(Config))), ids=lambda key: key.name)
def test_every_key_is_explained(key: Key) -> None:
    told = explain(key.name)
    assert told.startswith(f"{key.name}\n    ")
    assert " ".join(key.meaning.split()[:5]) in told


@pytest.mark.parametrize(
    ("word", "lines"),
    [
        (
            "outer.steps",
            ["takes    a whole number of at least 1", "default  3", "in a config          outer: {steps: 3}"],
        ),
        ("outer.steps", ["takes    a whole number of at least 1, at most "]),
        ("tolerance", ["takes    a number of at least 0\n"]),
        ("dtype", ["takes    float32 or float64", "on the command line  dtype=float32"]),
        ("hyperparameters.lr.buckets", ["in a config          hyperparameters: {lr: {buckets: 1}}"]),
        ("hyperparameters.lr", ["Of sgd (where a search begins at 0.05), adam (where a search begins at 0.001)"]),
        ("hyperparameters.mine", ["Of no built-in optimizer: it belongs to the loss of a task, and init is needed."]),
        ("buckets", ["hyperparameters.NAME.buckets"]),
        ("momentum", ["hyperparameters.momentum", "outer.momentum"]),
        ("mixed_precision", ["mixed_precision, of fds-dist retrain", "takes    none or bf16", "default  none"]),
        ("inner.groups.rest", ["inner.groups", "takes    a mapping, or null"]),
        ("compare.methods", ["takes    a list; of each entry: fds, greedy"]),
        ("task", ["digits           batch_size, val_fraction"]),
        ("task.digits", ["task.batch_size       a whole number of at least 1", "; default 64"]),
        ("task.path", ["text"]),
        ("model.hidden", ["mlp              a list of whole numbers of at least 1; default [64, 64]"]),
        ("digits", ["task: {name: digits, batch_size: 64, val_fraction: 0.2}", "beta2: 0.9"]),
    ],
)
def test_what_an_explanation_says(word: str, lines: list[str]) -> None:
    told = explain(word)
    assert [line for line in lines if line not in told] == []


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("outer.stepz", "outer.stepz: neither a key nor a config; expected a key"),
        ("outer.stepz", "did you mean outer.steps?"),
        ("learning_rate", "did you mean hyperparameters.lr?"),
        ("task.batchsize", "did you mean task.batch_size?"),
        ("model.ml", "did you mean model.mlp?"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest(word: str, fault: str) -> None:
    with pytest.raises(UserError) as raised:
        explain(word)
    assert fault in str(raised.value)


def test_a_config_is_shown_resolved_with_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["config", "digits", "--outer.steps=9"]) == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(capsys.readouterr().out)
    assert main(["config", "run"]) == 0
    assert "steps: 9" in capsys.readouterr().out
    assert main(["config", "digits", "outer.stepz=9"]) == 2
    assert capsys.readouterr().err == "fds-dist: outer.stepz: unknown key; did you mean outer.steps?\n"


def test_the_schema_is_json(capsys: Capture) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["required"] == ["task", "hyperparameters"]
    assert main(["schema", "x"]) == 2
    assert capsys.readouterr().err == "fds-dist: x: unexpected argument; expected options alone\n"


# --- completion ---


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, capsys: Capture) -> None:
    pytest.importorskip("shtab")
    assert ended("--print-completion", shell) == 0
    script = capsys.readouterr().out
    assert "optimize" in script and "world-size" in script


def test_bash_takes_the_completion(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("shtab")
    ended("--print-completion", "bash")
    (tmp_path / "completion").write_text(capsys.readouterr().out)
    ask = "source completion; COMP_WORDS=(fds-dist opt); COMP_CWORD=1; _shtab_fds_dist; echo ${COMPREPLY[@]}"
    told = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["optimize"]


def test_completion_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert capsys.readouterr().err == (
        "fds-dist: --print-completion: the package shtab is not installed; "
        "expected pip install 'fds-dist[completion]' first\n"
    )
    assert main(["--print-completion", "fish"]) == 2
    assert "choose from" in capsys.readouterr().err
