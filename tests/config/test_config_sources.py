"""A config by the name of a shipped one, or by the folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fds_dist.cli import main
from fds_dist.common.faults import UserError
from fds_dist.config import dump_config, load_config, read_draft
from fds_dist.config.sources import SHIPPED, shipped_configs

MINE = "task: {name: digits}\nhyperparameters: {lr: {buckets: 2}}\nname: mine\n"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(source: str) -> str:
    with pytest.raises(UserError) as raised:
        load_config(source)
    return str(raised.value)


def test_a_shipped_config_is_read_by_its_name_from_anywhere() -> None:
    names = shipped_configs()
    assert {"digits", "paper/figure1", "twins/fashion", "large/vit"} <= set(names)
    assert not any(name.startswith("sweeps") for name in names)
    for name, file in names.items():
        assert load_config(name) == load_config(file)


def test_what_lies_in_the_working_directory_wins() -> None:
    Path("digits").write_text(MINE)
    assert load_config("digits").name == "mine"
    Path("digits").unlink()
    Path("digits").mkdir()
    assert load_config("digits") == load_config(SHIPPED / "digits.yaml")
    Path("digits/config.yaml").write_text(MINE)
    assert load_config("digits").name == "mine"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            "digit",
            "digit: no such file; expected the path of a YAML file, the folder of a run, or a shipped config such ",
        ),
        ("fashion", "did you mean twins/fashion?"),
        ("figure1", "did you mean paper/figure1?"),
        ("paper/figure9", "a shipped config such as paper/figure4, paper/figure3, paper/figure2"),
        ("configs/digits.yaml", "did you mean digits?"),
        ("Digits.yml", "did you mean digits?"),
        ("somewhere/else.yaml", "there is no folder somewhere; expected the path of a YAML file"),
        (".", ".: Is a directory that holds no config.yaml; expected the path of a YAML file, or the folder of a run"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest_shipped_ones(source: str, words: str) -> None:
    assert words in told(source)


def test_a_file_beside_it_is_nearer_than_a_shipped_one() -> None:
    Path("digit.yaml").write_text(MINE)
    assert told("digits.yaml") == "digits.yaml: no such file; did you mean digit.yaml?"


def test_the_folder_of_a_run_stands_for_its_config() -> None:
    folder = Path("runs/größe 1 🚀")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(load_config("digits")), encoding="utf-8")
    draft = read_draft(str(folder), ["outer.steps=1"])
    assert draft.faults == [] and draft.config is not None
    assert draft.config.outer.steps == 1
    assert draft.remarks == (
        f"{folder} is the folder of a run: its config is read; to continue that run: --resume {folder}",
    )


def test_a_shipped_config_is_checked_from_an_empty_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "twins/digits"]) == 0
    assert capsys.readouterr().out.startswith("Plan  6 outer steps of 496 inner steps")
    assert list(Path().iterdir()) == []
