"""Ranks that would run something else are named before the first step: key, ranks and values, on every rank."""

from __future__ import annotations

import json

import pytest
from launching import SUPPORT, start_ranks
from unlike_ranks import CASES, COMMANDS

from fds_dist.distributed.alike import MOST

Ends = list[dict[str, dict[str, str]]]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """What each of two ranks raised, by the name of the case."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = start_ranks([str(SUPPORT / "unlike_ranks.py"), str(folder)], 2, [folder])
    assert [rank.status for rank in ended] == [0, 0], ended
    return [json.loads((folder / f"ends-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", [*CASES, *COMMANDS])
def test_what_differs_is_named_on_every_rank(ends: Ends, name: str) -> None:
    first, second = (end[name] for end in ends)
    assert first == second
    assert first["raised"] == "UserError", first
    lines = first["message"].splitlines()
    line = (CASES | COMMANDS)[name].line
    assert any(each.startswith(line) for each in lines), lines
    assert len(lines) <= MOST + 1
    for each in lines:
        assert " on rank 0" in each
        assert "rank 1" in each
        assert "; expected the same on all ranks" in each


def test_there_are_as_many_cases_as_the_list_of_faults_has() -> None:
    assert len(CASES) >= 39
