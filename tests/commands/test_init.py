"""`fds-dist init`: what it writes runs as it is, and says the truth about the defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fds_dist.cli import main
from fds_dist.config import Config, load_config
from fds_dist.config.keys import all_keys, keys_of
from fds_dist.config.sources import SHIPPED

QUICK = ("inner.epochs=1", "outer.steps=1", "outer.judge_seeds=0", "name=run")
NAMES = {key.name.rpartition(".")[2] for key in all_keys(keys_of(Config))}
HIDDEN = re.compile(r"^( *)# ( *)(\w+):( |$)")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as for a process that starts there
    monkeypatch.delitem(__import__("sys").modules, "my_task", raising=False)


def uncommented(text: str) -> tuple[str, int]:
    """The config with the keys in its comments as keys, and how many these are."""
    lines, count = text.splitlines(), 0
    for number, line in enumerate(lines):
        match = HIDDEN.match(line)
        if match and match[3] in NAMES:
            lines[number], count = HIDDEN.sub(r"\1\2\3:\4", line), count + 1
    return "\n".join(lines), count


def test_the_commented_config_runs_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    assert capsys.readouterr().out == (
        "written: config.yaml\nnext: fds-dist check config.yaml, then fds-dist optimize config.yaml\n"
    )
    assert main(["check", "config.yaml"]) == 0
    assert main(["optimize", "config.yaml", *QUICK]) == 0
    assert Path("runs/run/schedule.json").is_file()


def test_ones_own_task_runs_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "größe 1 🚀", "--task"]) == 0
    assert "written: 'größe 1 🚀.yaml' and my_task.py" in capsys.readouterr().out
    assert main(["optimize", "größe 1 🚀.yaml", *QUICK]) == 0
    assert load_config("größe 1 🚀.yaml").task.name == "my_task:task"
    assert len(Path("my_task.py").read_text().splitlines()) <= 35


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--task"]])
def test_what_it_writes_learns(options: list[str]) -> None:
    from fds_dist import optimize

    assert main(["init", *options]) == 0
    verdict = optimize("config.yaml", progress=False).verdict
    assert verdict is not None
    losses = {name: candidate.val_loss for name, candidate in verdict.candidates.items()}
    assert min(losses.values()) < losses["start"] / 2


@pytest.mark.parametrize("options", [[], ["--task"]])
def test_every_section_stands_there_and_comments_show_the_defaults(options: list[str]) -> None:
    assert main(["init", *options]) == 0
    text = Path("config.yaml").read_text(encoding="utf-8")
    Path("full.yaml").write_text(*uncommented(text)[:1], encoding="utf-8")
    assert uncommented(text)[1] > 60
    assert load_config("full.yaml") == load_config("config.yaml")
    for name in Config.model_fields:
        assert re.search(rf"^(# )?{name}:", text, re.MULTILINE), name
    assert max(map(len, text.splitlines())) <= 110


def test_a_shipped_config_is_copied_and_names_the_schema() -> None:
    assert main(["init", "--from", "twins/digits"]) == 0
    assert load_config("digits.yaml") == load_config("twins/digits")
    text = Path("digits.yaml").read_text(encoding="utf-8")
    assert "#   fds-dist optimize digits.yaml\n" in text
    assert text.startswith(f"# yaml-language-server: $schema={(SHIPPED / 'schema.json').as_uri()}\n")
    assert main(["init", "sub/mine.yml", "--from", "digits"]) == 0
    assert load_config("sub/mine.yml") == load_config(SHIPPED / "digits.yaml")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (["init"], "NAME: config.yaml is there already; expected a new name"),
        (["init", "new", "--task"], "NAME: my_task.py is there already; expected a new name"),
        (["init", "config.yaml"], "NAME: config.yaml is there already; expected a new name"),
        (["init", "a", "b"], "b: unexpected argument; expected NAME and options alone"),
        (
            ["init", "new", "--from", "digit"],
            "--from: digit is not a shipped config; expected one of digits; did you mean",
        ),
        (["init", "--from", "digits", "--task"], "--task: cannot be combined with --from; expected one of the two"),
        (["init", "my_task.py/new"], "NAME: my_task.py/new.yaml: "),
    ],
)
def test_what_cannot_be_written_is_one_line_and_leaves_all_as_it_was(
    line: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("config.yaml").write_text("mine")
    Path("my_task.py").write_text("mine")
    assert main(line) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"fds-dist: {fault}")
    assert {path.name: path.read_text() for path in Path().iterdir()} == {"config.yaml": "mine", "my_task.py": "mine"}
