"""What FDS answers when its search ends, as `optimize` does: the mean of its last values, or what it judges best."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fds_dist.commands.compare.job import Job, Trial
from fds_dist.outer.candidates import Candidate, candidates
from fds_dist.outer.judge import Judge, Judgement, repetition
from fds_dist.outer.progress import OuterProgress
from fds_dist.tracking.records import OuterRecord
from fds_dist.tracking.verdict import JudgedCandidate, Verdict

SELECTION = 2000
"""Added to a repetition's number for the seeds on which FDS chooses: neither its search nor the judges of the
comparison use them."""


def final_trial(job: Job, steps: Sequence[Trial]) -> Trial | None:
    """The answer to the outer steps `steps` as a trial, which is charged for the runs that chose it.

    The candidates (average, best, last) train on `judge_seeds` fresh seeds, or on fewer where the budget is short.
    Without judging, the mean of the last values trains once. Called alike on all ranks.

    Returns:
        None where the config asks for neither an average nor a judging, or the budget is spent.
    """
    if not steps or not job.runs_to_answer:
        return None
    began, answers = time.perf_counter(), _candidates(job, steps)
    different = len({tuple(answer.values) for answer in answers.values()})
    runs_left = int((job.budget - sum(step.cost for step in steps)) // job.horizon)
    seeds = min(max(1, job.judge_seeds), runs_left // different)
    if not seeds:
        return None
    judge = Judge(repetition(job.problem, SELECTION), job.horizon, seeds, job.ranks)
    judged = judge.judge(answer.values for answer in answers.values())
    scores = {name: _score(judged[tuple(answer.values)]) for name, answer in answers.items()}
    name = Verdict.of(seeds, job.horizon, scores).result
    return Trial(
        number=len(steps),
        values=answers[name].values,
        val_loss=scores[name].val_loss,
        val_accuracy=scores[name].val_accuracy,
        steps=job.horizon,
        cost=float(different * seeds * job.horizon),
        seconds=job.ranks.on_first(lambda: time.perf_counter() - began) * job.ranks.world_size,
        state={"result": name},
        is_answer=True,
    )


def _candidates(job: Job, steps: Sequence[Trial]) -> dict[str, Candidate]:
    """Those that are trained: all but the start, or without judging the average alone."""
    records = [
        OuterRecord(
            outer_step=step.number,
            horizon=step.steps,
            hyperparameters=job.problem.space.unpack(step.values),
            hypergradients={},
            val_loss=step.val_loss,
            val_accuracy=step.val_accuracy,
            seconds=step.seconds,
            world_size=job.ranks.world_size,
        )
        for step in steps
    ]
    progress = OuterProgress.from_dict(steps[-1].state)
    answers = candidates(job.problem.space, progress, records, job.average)
    names = [name for name in answers if name != "start"]
    return {name: answers[name] for name in (names if job.judge_seeds else names[:1])}


def _score(judgements: Sequence[Judgement]) -> JudgedCandidate:
    return JudgedCandidate.of([each.val_loss for each in judgements], [each.val_accuracy for each in judgements])
