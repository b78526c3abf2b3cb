"""Along `mesh.data` any loss is the whole batch's; a network that reads across samples is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import losses_of_parts
import pytest
from launching import start_ranks
from losses_of_parts import LOSSES


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By the number of ranks, what each of them got."""
    results = {}
    for world_size in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks-{world_size}")
        command = [losses_of_parts.__file__, str(folder / "out"), str(world_size)]
        ended = start_ranks(command, world_size, [folder])
        assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * world_size
        results[world_size] = [json.loads(Path(f"{folder}/out.{rank}").read_text()) for rank in range(world_size)]
    return results


@pytest.mark.parametrize("estimator", ["forward", "reverse"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_that_of_the_whole_batch(results: dict[int, Any], loss: str, estimator: str) -> None:
    (expected,) = [result[f"{loss} {estimator}"] for result in results[1]]
    assert all(expected)
    for result in results[2]:
        # Sums over parts come in another order: 1e-16, amplified by seven steps with batch-norm.
        assert result[f"{loss} {estimator}"] == pytest.approx(expected, rel=1e-11)


def test_a_network_that_reads_across_samples_is_refused_where_batches_are_split(results: dict[int, Any]) -> None:
    assert results[1][0]["across"] == "taken"
    for result in results[2]:
        assert result["across"].startswith("mesh.data: a split batch's gradient is off by")
        assert "reads across samples" in result["across"]
