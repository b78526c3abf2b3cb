"""Vector hyperparameters and augmentations on two ranks: the same bits along `tangent`, rounding along `data`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anywhere_ranks
import pytest
from launching import start_ranks
from selection import slow_unless, wanted


def kept(name: str) -> bool:
    """Whether CI has it: the weights of all samples, which take most time, by double backward and reverse mode only."""
    return not name.endswith("weights") or not ("difference" in name or "jvp" in name)


ALONG_TANGENT, ALONG_DATA = (
    slow_unless(kept, ((name,) for name in anywhere_ranks.NAMES if name.startswith(axis)))
    for axis in ("tangent", "data")
)
ROUNDING, DIFFERENCES = 1e-10, 1e-7
"""Sums over parts come in another order: 1e-16, amplified by nine steps; differences of gradients divide it by their
step of 2e-6 before."""


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[dict[str, Any]]]:
    """By the number of ranks, what each of them got."""
    results, names = {}, json.dumps([name for (name,) in wanted(request, "name")])
    for world_size in (1, 2):
        folder = tmp_path_factory.mktemp(f"anywhere-{world_size}")
        command = [anywhere_ranks.__file__, str(folder / "out"), str(world_size), names]
        ended = start_ranks(command, world_size, [folder])
        assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * world_size
        results[world_size] = [json.loads(Path(f"{folder}/out.{rank}").read_text()) for rank in range(world_size)]
    return results


@pytest.mark.parametrize("name", ALONG_TANGENT)
def test_tangent_ranks_have_the_same_bits(results: dict[int, Any], name: str) -> None:
    (expected,) = [result[name] for result in results[1]]
    assert [result[name] for result in results[2]] == [expected, expected]


@pytest.mark.parametrize("name", ALONG_DATA)
def test_data_ranks_see_the_numbers_of_the_whole_batch(results: dict[int, Any], name: str) -> None:
    (expected,) = [result[name] for result in results[1]]
    bound = DIFFERENCES if "difference" in name else ROUNDING
    for result in results[2]:
        for key, numbers in expected.items():
            assert all(numbers)
            assert result[name][key] == pytest.approx(numbers, rel=bound, abs=1e-14)


def test_a_retraining_augments_the_whole_batch_whatever_the_ranks(results: dict[int, Any]) -> None:
    (expected,) = [result["retrain"] for result in results[1]]
    for result in results[2]:
        assert result["retrain"] == pytest.approx(expected, rel=1e-12)
