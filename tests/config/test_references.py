"""`${env:NAME}` in a config: filled in where it is used, written down as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fds_dist.common.faults import UserError
from fds_dist.common.paths import expand_path
from fds_dist.config import Config, dump_config, load_config, read_draft

REFERENCE = "${env:FDS_TEST_WORD}"
CONFIG = {
    "task": {"name": "digits", "token": REFERENCE, "urls": ["a", {"b": f"https://u:{REFERENCE}@host"}], "size": 3},
    "model": {"name": "mlp", "weights": f"{REFERENCE}/w.safetensors"},
    "inner": {"optimizer": {"name": "own:Optimizer", "key": REFERENCE}},
    "hyperparameters": {"lr": {"init": {"file": f"{REFERENCE}/schedule.json"}}},
    "tracking": {"wandb": {"entity": REFERENCE, "tags": ["x", REFERENCE]}},
    "output_dir": f"/tmp/{REFERENCE}",
}


@pytest.fixture(autouse=True)
def word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDS_TEST_WORD", "hidden-word")


def test_a_config_has_the_values_and_is_written_with_the_references() -> None:
    config = load_config(CONFIG, ["tracking.wandb.group=${env:FDS_TEST_WORD}-1"])
    assert config.task.options["token"] == "hidden-word"
    assert config.task.options["urls"] == ["a", {"b": "https://u:hidden-word@host"}]
    assert config.model is not None and config.model.weights == "hidden-word/w.safetensors"
    assert config.inner.optimizer_options == {"key": "hidden-word"}
    assert config.tracking.wandb.tags == ["x", "hidden-word"]
    assert config.tracking.wandb.group == "hidden-word-1"
    assert config.output_dir == "/tmp/hidden-word"
    written = config.resolved()
    assert "hidden-word" not in str(written) and "hidden-word" not in dump_config(config)
    assert written["task"] == CONFIG["task"]
    assert written["tracking"]["wandb"]["group"] == "${env:FDS_TEST_WORD}-1"
    assert written["output_dir"] == "/tmp/${env:FDS_TEST_WORD}"


def test_what_is_written_reads_as_the_same_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(CONFIG)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config == load_config(config)
    monkeypatch.setenv("FDS_TEST_WORD", "another")
    assert load_config(path).task.options["token"] == "another"


def test_a_value_that_has_changed_since_is_written_as_it_is() -> None:
    config = load_config(CONFIG)
    changed = config.model_copy(update={"output_dir": "elsewhere"})
    assert changed.resolved()["output_dir"] == "elsewhere"
    assert changed.resolved()["task"]["token"] == REFERENCE


def test_an_optimizer_of_a_name_alone_keeps_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDS_TEST_WORD", "adam")
    config = load_config({**CONFIG, "inner": {"optimizer": {"name": REFERENCE}}})
    assert config.inner.optimizer == "adam"
    assert config.resolved()["inner"]["optimizer"] == REFERENCE


def test_each_missing_variable_is_a_line_with_key_and_variable() -> None:
    draft = read_draft(CONFIG, ["task.urls=['${env:FDS_NOT_SET}']", "output_dir='${env:FDS_NEITHER}/x'"])
    lines = [str(fault) for fault in draft.faults]
    expected = "; expected a variable that is set on every rank, such as ${env:HOME}"
    assert f"task.urls[0]: there is no environment variable FDS_NOT_SET{expected}" in lines
    assert f"output_dir: there is no environment variable FDS_NEITHER{expected}" in lines
    assert len(lines) == 2


def test_a_reference_is_text_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDS_TEST_WORD", "3")
    with pytest.raises(UserError, match=r"outer\.steps: '\${env:FDS_TEST_WORD}' is text"):
        load_config(CONFIG, ["outer.steps=${env:FDS_TEST_WORD}"])


def test_paths_on_the_command_line_take_references() -> None:
    assert expand_path("/a/${env:FDS_TEST_WORD}/b") == Path("/a/hidden-word/b")
    with pytest.raises(UserError, match="there is no environment variable FDS_NOT_SET"):
        expand_path("${env:FDS_NOT_SET}")


def test_a_config_without_references_knows_of_none() -> None:
    assert isinstance(load_config({"task": {"name": "digits"}, "hyperparameters": {"lr": {"init": 0.1}}}), Config)
