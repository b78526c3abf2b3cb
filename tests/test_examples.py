"""The examples in the docstrings of the package's functions run, and say what they show."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import fds_dist

COMMANDS = ("optimize", "check", "verify", "retrain", "report", "export", "noise", "compare", "bench", "load_run")
OF_A_RUN = ("retrain", "report", "export", "load_run")
"""Commands whose examples name the folder that the example of `optimize` makes."""


def examples(name: str) -> doctest.DocTest:
    """The example of one command, with what a person who reads it has imported."""
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(fds_dist, name), name, globs={"fds_dist": fds_dist})
    assert test.examples, f"{name} has no example"
    return test


def failures(name: str) -> str:
    """What the example of one command did otherwise than it says."""
    told: list[str] = []
    doctest.DocTestRunner(verbose=False).run(examples(name), out=told.append)
    return "".join(told)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the example of `optimize` has run."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert failures("optimize") == ""
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_folder: Path
) -> None:
    monkeypatch.chdir(run_folder if name in OF_A_RUN else tmp_path)
    assert failures(name) == ""


def test_every_public_name_is_there_and_listed() -> None:
    assert set(fds_dist.__all__) <= set(dir(fds_dist))
    assert set(COMMANDS) <= set(fds_dist.__all__)
    for name in fds_dist.__all__:
        assert getattr(fds_dist, name).__doc__, name


def test_a_command_prints_nothing_where_it_is_to_be_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("optimize", "retrain", "compare"):
        assert failures(name) == ""
    assert capfd.readouterr().out == ""


def test_a_file_that_is_no_form_of_export_is_a_fault() -> None:
    with pytest.raises(fds_dist.UserError, match="did you mean snippet"):
        fds_dist.export("runs/gone", "snipet")
