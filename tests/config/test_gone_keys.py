"""`tangents.dtype`, a key of earlier versions: tangents have the dtype of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fds_dist.commands.inputs import draft_of
from fds_dist.config import dump_config, load_config, read_draft

BASE: dict[str, Any] = {"task": {"name": "digits"}, "hyperparameters": {"lr": {"init": 0.1, "step": 0.1}}}
REMARK = "tangents.dtype is gone: tangents have the dtype of the weights; remove the key"


@pytest.mark.parametrize(
    "overrides", [["tangents.dtype=null"], ["tangents.dtype=float32"], ["dtype=float64", "tangents.dtype=float64"]]
)
def test_a_value_that_changes_nothing_is_told_and_not_written_again(overrides: list[str]) -> None:
    draft = read_draft(BASE, overrides)
    assert (draft.faults, draft.remarks) == ([], (REMARK,))
    assert draft.config == load_config(BASE, [override for override in overrides if override.startswith("dtype")])
    assert draft.config is not None and "dtype" not in draft.config.resolved()["tangents"]
    assert read_draft(BASE).remarks == ()


def test_a_value_that_differs_is_a_fault() -> None:
    draft = read_draft(BASE, ["tangents.dtype=float64"])
    assert list(map(str, draft.faults)) == [
        "tangents.dtype: float64 differs from dtype float32; expected float32, or leave it out"
    ]
    assert draft.is_broken("tangents.dtype") and draft.remarks == ()
    (fault,) = read_draft(BASE, ["dtype=float16", "tangents.dtype=float64"]).faults
    assert fault.key == "dtype"  # which of the two is meant to be the same is not known


def test_the_folder_of_an_earlier_run_is_resumed_without_a_word(tmp_path: Path) -> None:
    written = dump_config(load_config(BASE)).replace("tangents:", "tangents:\n  dtype: null", 1)
    assert read_draft({**BASE, "tangents": {"dtype": None}}).remarks == (REMARK,)
    (tmp_path / "config.yaml").write_text(written)
    assert read_draft(tmp_path / "config.yaml").remarks == (REMARK,)
    draft = draft_of(None, [], resume=tmp_path)
    assert (draft.faults, draft.remarks) == ([], ()) and draft.config == load_config(BASE)
