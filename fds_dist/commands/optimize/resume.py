"""Where a search begins: anew, or where an earlier start of it has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fds_dist.build import Build, as_before
from fds_dist.commands.inputs import check_weights
from fds_dist.commands.optimize.next_steps import listed_length
from fds_dist.common.faults import Fault, UserError
from fds_dist.config import load_config
from fds_dist.distributed.mesh import Ranks
from fds_dist.outer.progress import OuterProgress, initial_progress
from fds_dist.storage.checkpoints import load_checkpoint
from fds_dist.storage.run_folder import RunFolder


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
        note: gets a line for each damaged checkpoint.

    Raises:
        UserError: the checkpoint does not fit the config.
    """
    fresh = initial_progress(built.problem, built.rule, built.settings)
    if resumed is None:
        return fresh
    earlier = load_config(resumed.config)
    check_weights(resumed, built.problem.build_model)
    state = ranks.on_first(lambda: load_checkpoint(resumed.checkpoints, note))
    if state is None:
        return fresh
    progress = OuterProgress.from_dict(state)
    if len(progress.values) != built.problem.space.size:
        problem = f"the checkpoint holds {len(progress.values)} learned numbers"
        expected = f"{built.problem.space.size}, as in this config; buckets cannot change on resuming"
        raise UserError(Fault("hyperparameters", problem, expected))
    stricter = built.config.outer.tolerance < earlier.outer.tolerance
    timeout = built.settings.timeout
    seconds = 0.0 if timeout is not None and progress.seconds >= timeout else progress.seconds  # as long again
    return replace(progress, converged=progress.converged and not stricter, seconds=seconds)


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
