"""Judging: what a λ is worth on fresh seeds. The best value that a search saw is also its luck; this is not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from fds_dist.compare.parallel import in_batches
from fds_dist.compare.records import Record, Trial, finite_or_none, loss_or_infinity
from fds_dist.compare.telling import Say
from fds_dist.compare.trials import plain_run
from fds_dist.distributed.mesh import Ranks
from fds_dist.engine.problem import Problem


@dataclass(frozen=True)
class Judgement:
    """One plain run over the whole horizon, from fresh weights on a split and batches that no search has seen."""

    seed: int
    val_loss: float
    val_accuracy: float | None
    test_accuracy: float | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; an infinite loss is null."""
        return {**asdict(self), "val_loss": finite_or_none(self.val_loss)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Judgement:
        """The inverse of `to_dict`."""
        return cls(**{**content, "val_loss": loss_or_infinity(content["val_loss"])})


class Found(NamedTuple):
    """A trial that was a method's best when it ended, with what had been spent until then."""

    trial: Trial
    cost: float
    seconds: float


def incumbents(trials: Sequence[Trial], horizon: int) -> list[Found]:
    """Each trial that improved on those before.

    Only whole runs count: a loss after a part of the horizon is no value of a schedule.
    """
    best, cost, seconds, found = math.inf, 0.0, 0.0, []
    for trial in trials:
        cost, seconds = cost + trial.cost, seconds + trial.seconds
        if trial.steps == horizon and trial.val_loss < best:
            best = trial.val_loss
            found.append(Found(trial, cost, seconds))
    return found


def judge(
    problem: Problem,
    candidates: Iterable[Sequence[float]],
    horizon: int,
    seeds: int,
    ranks: Ranks,
    record: Record,
    say: Say,
) -> dict[tuple[float, ...], list[Judgement]]:
    """Trains each λ of `candidates` on the same `seeds` seeds of `problem`, which must be `judging(...)`'s.

    What `record` holds already is not trained again.
    """
    judged = {
        (tuple(entry.pop("values")), entry["seed"]): Judgement.from_dict(entry) for entry in ranks.on_first(record.read)
    }
    wanted = [(values, seed) for values in dict.fromkeys(map(tuple, candidates)) for seed in range(seeds)]
    missing = [job for job in wanted if job not in judged]

    def run(job: tuple[tuple[float, ...], int]) -> Judgement:
        values, seed = job
        outcome = plain_run(problem, values, seed, horizon, test=True)
        accuracy = None if outcome.test is None else outcome.test.accuracy
        return Judgement(seed, outcome.val.loss, outcome.val.accuracy, accuracy)

    if missing:
        say(f"judging {len(wanted) // seeds} values on {seeds} fresh seeds: {len(missing)} runs")
    for batch in in_batches(ranks, missing, run):
        judged |= batch
        if ranks.is_first:
            record.append({"values": list(job[0]), **found.to_dict()} for job, found in batch)
    return {values: [judged[values, seed] for seed in range(seeds)] for values, _ in wanted}
