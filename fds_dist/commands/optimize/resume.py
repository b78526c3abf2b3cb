"""Where a search begins: anew, or where an earlier start of it has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fds_dist.build import Build, as_before
from fds_dist.build.run import outer_rule
from fds_dist.commands.inputs import check_weights
from fds_dist.commands.optimize.next_steps import listed_length
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.records import to_values
from fds_dist.common.values import few
from fds_dist.config import load_config
from fds_dist.distributed.mesh import Ranks
from fds_dist.outer.meaning import Meaning, earlier_meaning, meaning_of, numbers_in, with_meaning
from fds_dist.outer.progress import OuterProgress, initial_progress
from fds_dist.storage.checkpoints import load_checkpoint
from fds_dist.storage.run_folder import RunFolder
from fds_dist.tracking.history import read_history
from fds_dist.tracking.records import OuterRecord


def going_on(built: Build, ranks: Ranks, folder: RunFolder) -> Build:
    """The run with the estimator that `estimator: auto` took when it began in `folder`."""

    def earlier() -> str | None:
        try:
            return load_config(folder.config).estimator
        except (UserError, OSError):  # it ended before it wrote its config
            return None

    return as_before(built, ranks.on_first(earlier))


def first_progress(built: Build, ranks: Ranks, resumed: RunFolder | None, note: Callable[[str], None]) -> OuterProgress:
    """The progress with which a search begins: that of the newest undamaged checkpoint, if there is one.

    Args:
        resumed: the folder of the run that goes on; None for a new run.
        note: gets a line for each damaged checkpoint, and for what has changed since.

    Raises:
        UserError: the checkpoint, or the history beside it, does not fit the config; or all checkpoints are damaged.
    """
    if resumed is None:
        return initial_progress(built.problem, built.rule, built.settings)
    earlier = ranks.on_first(lambda: load_config(resumed.config))  # which it may have written a moment ago
    ranks.on_first(lambda: check_weights(resumed, built.problem.build_model))
    saved = ranks.on_first(lambda: _saved(resumed, note))
    if saved is None:
        return initial_progress(built.problem, built.rule, built.settings)
    before = replace(saved.meaning, rule=saved.meaning.rule or outer_rule(earlier.outer).kind)
    now = meaning_of(built.problem, built.rule)
    progress, changes = with_meaning(saved.progress, before, now, built.problem.space)
    for change in changes:
        note(change)
    stricter = built.config.outer.tolerance < earlier.outer.tolerance
    timeout = built.settings.timeout
    seconds = 0.0 if timeout is not None and progress.seconds >= timeout else progress.seconds  # as long again
    return replace(progress, converged=progress.converged and not stricter, seconds=seconds)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    progress: OuterProgress
    meaning: Meaning


def checkpoint_content(progress: OuterProgress, built: Build) -> dict[str, Any]:
    """What `first_progress` reads, as JSON values."""
    return {**progress.to_dict(), "meaning": to_values(meaning_of(built.problem, built.rule))}


def _saved(folder: RunFolder, note: Callable[[str], None]) -> Saved | None:
    """On the first rank: the newest whole checkpoint; None where there is no checkpoint at all."""
    records = read_history(folder.history) if folder.history.is_file() else []
    damaged: list[str] = []

    def read(number: int, content: dict[str, Any]) -> Saved:
        progress = OuterProgress.from_dict(content)
        if progress.outer_step != number:
            raise ValueError(f"outer_step is {progress.outer_step}")
        meaning = earlier_meaning(content.get("meaning"), records)
        if meaning is not None and meaning.size != len(progress.values):
            raise ValueError(f"{len(progress.values)} numbers cannot be {meaning}")
        return Saved(progress, meaning or Meaning([]))

    saved = load_checkpoint(folder.checkpoints, damaged.append, read)
    for line in damaged:
        note(line)
    if saved is not None:
        _check_history(folder.history, records, saved)
    elif damaged:
        problem = f"no checkpoint in {folder.checkpoints} is whole ({damaged[0]})"
        raise UserError(Fault("--resume", problem, "a whole one; where there is no file, the search begins anew"))
    return saved


def _check_history(path: Path, records: Sequence[OuterRecord], saved: Saved) -> None:
    """That the records are those of the outer steps that are done, in order, and of the same numbers.

    Raises:
        UserError: a record is missing, or is of other numbers.
    """
    done, expected = saved.progress.outer_step, "the file as the run wrote it"
    numbers = [record.outer_step for record in records if record.outer_step < done]
    if numbers != list(range(done)):
        problem = f"{path} has the outer steps {few(map(str, numbers)) or 'none'}, not all {done} that are done"
        raise UserError(Fault("--resume", problem, expected))
    for record in records[:done]:
        if Counter(map(str, numbers_in(record))) != Counter(map(str, saved.meaning.learned)):
            problem = f"{path} has {few(map(str, numbers_in(record)))} in outer step {record.outer_step}"
            raise UserError(Fault("--resume", problem, f"{saved.meaning}, as in the checkpoint"))


def nothing_left(built: Build, progress: OuterProgress) -> str:
    """The reason why no outer step is left to do, or ""."""
    done, wanted = progress.outer_step, len(built.settings.horizons)
    if progress.converged:
        tolerance = built.config.outer.tolerance
        return f"nothing left to do: after outer step {done - 1} every step was below outer.tolerance={tolerance:g}"
    if done >= wanted:
        also = f", and as many {key}" if (key := listed_length(built)) else ""
        return f"nothing left to do: all {done} outer steps are done (for more: outer.steps={2 * done}{also})"
    ending = built.settings.ending(progress)
    return f"nothing left to do: {ending} (for more: outer.target=null)" if ending else ""
