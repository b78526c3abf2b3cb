"""The result of a search: which of its candidates it is, and the files that hold them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fds_dist.build import Build
from fds_dist.common.faults import UserError
from fds_dist.common.files import write_text_atomic
from fds_dist.common.records import RecordFile
from fds_dist.common.secrets import hide_secrets
from fds_dist.config import Config
from fds_dist.distributed.mesh import Ranks
from fds_dist.outer.candidates import Candidate, candidates
from fds_dist.outer.judge import Judge, JudgedRun, Judgement, judging
from fds_dist.outer.progress import OuterProgress
from fds_dist.schedule.schedule import Schedule
from fds_dist.storage.run_folder import CANDIDATES, RunFolder
from fds_dist.tracking.records import OuterRecord
from fds_dist.tracking.verdict import JudgedCandidate, Verdict

MAKES_AN_INNER_RUN = ("task", "model", "inner", "hyperparameters", "tangents", "dtype", "precision", "seed")
"""Sections of the config that an inner run depends on. If one has changed, an interrupted inner run starts anew, and a
judged run is trained again."""

DAMAGED = "a file written by `fds-dist optimize`; delete it to judge anew"
"""What a message expects in place of a file of judged runs that cannot be read."""


@dataclass(frozen=True)
class Outcome:
    """What a search answers, as far as it is."""

    name: str
    """The candidate that is the result: average, best, last or start."""
    schedules: dict[str, Schedule]
    """Each candidate, the start too, with the horizon of the run that it was learned with."""
    verdict: Verdict | None = None
    """None where nothing was judged (yet)."""

    @property
    def schedule(self) -> Schedule:
        """The result."""
        return self.schedules[self.name]

    def write(self, folder: RunFolder) -> None:
        """Writes the files of the candidates and the verdict, then the result. Files of an earlier outcome go."""
        files = {folder.path / f"schedule_{name}.json": self.schedules.get(name) for name in CANDIDATES}
        texts = {path: schedule and schedule.to_json() for path, schedule in files.items()}
        texts[folder.verdict] = self.verdict and self.verdict.to_json()
        for path, text in texts.items():
            if text is None:
                path.unlink(missing_ok=True)
            else:
                write_text_atomic(path, text)
        write_text_atomic(folder.schedule, self.schedule.to_json())

    def is_in(self, folder: RunFolder) -> bool:
        """Whether the folder's result is this one."""
        try:
            return Schedule.load(folder.schedule) == self.schedule
        except UserError:
            return False


@dataclass(frozen=True)
class Outcomes:
    """Finds the outcome of a search in `folder`."""

    built: Build
    folder: RunFolder

    def unjudged(self, progress: OuterProgress, history: Sequence[OuterRecord]) -> Outcome:
        """The preferred candidate after the outer steps of `progress`: the average, or the last values."""
        answers = self._candidates(progress, history)
        return Outcome(next(iter(answers)), self._schedules(answers))

    def judged(
        self, progress: OuterProgress, history: Sequence[OuterRecord], ranks: Ranks, say: Callable[[str], None]
    ) -> Outcome:
        """The best candidate on the fresh seeds, after training those runs that are not in the folder yet.

        Called alike on all ranks. All candidates train for as many steps, those of the longest outer step so far. With
        `outer.judge_seeds: 0`, and before an outer step is done, it is the unjudged outcome.
        """
        if not self.built.config.outer.judge_seeds or not progress.outer_step:
            return self.unjudged(progress, history)
        answers, judge = self._candidates(progress, history), self._judge(progress, ranks, say)
        judgements = judge.judge(answer.values for answer in answers.values())
        verdict = Verdict.of(
            judge.seeds,
            judge.horizon,
            {name: _judged(judgements[tuple(answer.values)], answer) for name, answer in answers.items()},
        )
        return Outcome(verdict.result, self._schedules(answers), verdict)

    def is_settled(self, progress: OuterProgress, history: Sequence[OuterRecord], ranks: Ranks) -> bool:
        """Whether nothing is left to judge or to write. Called alike on all ranks."""
        if self.built.config.outer.judge_seeds:
            answers, judge = self._candidates(progress, history), self._judge(progress, ranks, _say_nothing)
            if judge.missing(answer.values for answer in answers.values()):
                return False
        outcome = self.judged(progress, history, ranks, _say_nothing)
        return ranks.on_first(lambda: outcome.is_in(self.folder))

    def _candidates(self, progress: OuterProgress, history: Sequence[OuterRecord]) -> dict[str, Candidate]:
        return candidates(self.built.problem.space, progress, history, self.built.config.outer.average)

    def _schedules(self, answers: dict[str, Candidate]) -> dict[str, Schedule]:
        problem = self.built.problem
        return {
            name: problem.space.schedule(answer.values, answer.horizon, problem.optimizer_info)
            for name, answer in answers.items()
        }

    def _judge(self, progress: OuterProgress, ranks: Ranks, say: Callable[[str], None]) -> Judge:
        horizon = max(self.built.settings.horizons[: progress.outer_step], default=progress.horizon)
        return Judge(
            problem=judging(self.built.problem),
            horizon=horizon,
            seeds=self.built.config.outer.judge_seeds,
            ranks=ranks,
            file=RecordFile(self.folder.judged_runs, JudgedRun, DAMAGED),
            say=say,
            setting=self._setting(horizon),
        )

    def _setting(self, horizon: int) -> str:
        """A short name of everything beside λ and the seed that a judged run depends on."""
        config = self.built.config
        facts: list[tuple[str, object]] = [*inner_settings(self.built)]
        facts += [("horizon", horizon), ("val_batch_norm", config.outer.val_batch_norm)]
        names = [each.name for each in self.built.problem.space.learned]
        if names != sorted(names):  # the order of the numbers, as in λ; earlier versions left it out
            facts.append(("order", names))
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def inner_settings(built: Build) -> Iterator[tuple[str, object]]:
    """The sections of the config that an inner run depends on, without secrets: they are written down."""
    settings = hide_secrets(built.config.resolved())
    return ((key, value) for key, value in settings.items() if key in MAKES_AN_INNER_RUN)


def estimator_settings(config: Config) -> dict[str, object]:
    """What else decides what is kept within an inner run: nothing by forward mode."""
    if config.estimator == "random_directions":
        return {"directions": config.random_directions.count}
    if config.estimator == "forward":
        return {}
    discount = config.greedy.discount if config.estimator == "greedy" else None
    return {"estimator": config.estimator, "discount": discount, "val_batch_norm": config.outer.val_batch_norm}


def _judged(judgements: Sequence[Judgement], answer: Candidate) -> JudgedCandidate:
    losses, accuracies = [each.val_loss for each in judgements], [each.val_accuracy for each in judgements]
    return JudgedCandidate.of(losses, accuracies, answer.outer_step)


def _say_nothing(line: str) -> None:
    """Prints nothing: for a look at what is there."""
