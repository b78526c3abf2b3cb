"""Retraining: for each seed, epochs of optimizer steps driven by the schedule, with a test after each epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from torch import nn

from fds_dist.commands.retrain.checkpoints import SeedFolder
from fds_dist.commands.retrain.optimizers import prepared
from fds_dist.commands.retrain.records import RetrainResult, Summary
from fds_dist.commands.retrain.reporting import Reporter, Reporters
from fds_dist.commands.retrain.seed_run import SeedRun
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.commands.retrain.step_terms import KEY
from fds_dist.common.files import write_text_atomic
from fds_dist.common.randomness import derive_seed, seeded
from fds_dist.config import CheckpointConfig
from fds_dist.distributed.endings import graceful
from fds_dist.distributed.errors import rank_errors_of_libraries
from fds_dist.distributed.mesh import Ranks
from fds_dist.schedule.schedule import Schedule
from fds_dist.tasks.base import Task

USUAL = CheckpointConfig()


def retrain(
    make_task: Callable[[int], Task],
    build_model: Callable[[int], nn.Module],
    schedule: Schedule,
    settings: RetrainSettings,
    ranks: Ranks,
    folder: Path,
    reporters: Sequence[Reporter] = (),
    checkpoint: CheckpointConfig = USUAL,
    data: Mapping[str, str] = MappingProxyType({}),
) -> list[RetrainResult]:
    """Trains a network from scratch for each of `settings.all_seeds`, by `schedule` stretched to `settings.epochs`
    or `settings.steps`.

    Under a launcher it is called alike on every rank; each computes its part of every batch. It writes `folder`/SEED/
    with ``history.jsonl``, ``last.safetensors``, ``best.safetensors`` (with ``ema`` or a schedule-free optimizer these
    are averages, and the weights in training are in ``last_trained.safetensors``) and the state from which a later call
    with the same settings continues, and ``summary.json`` with mean and spread over the seeds. All seeds share one test
    set. The best weights are chosen on validation data that is held out (`settings.hold_out`); without such data they
    are the last.

    Args:
        make_task: seed → task, so that the order of the data also differs between seeds.
        build_model: seed → network.
        reporters: receive the events of the retraining; used on rank 0 only.
        data: what names the data and the network in the state; a later call with others is refused.
        checkpoint: when to save within an epoch, and how long a signal may take to end the retraining.

    Raises:
        UserError: the schedule could train nothing, the task gives no usable data, or `folder` holds a retraining with
            other settings.
    """
    all_reporters = Reporters(reporters if ranks.is_first else ())
    results: list[RetrainResult] = []
    summary = None
    try:
        prepared(schedule, 1)  # before any data is loaded
        with graceful(checkpoint.grace, partial(_last_words, ranks)):
            for seed in settings.all_seeds:
                task, files = make_task(seed), SeedFolder(folder / str(seed))
                # The caller's generators stay as they are.
                with seeded(derive_seed(seed, KEY)), rank_errors_of_libraries():
                    run = SeedRun(
                        seed, task, build_model, schedule, settings, ranks, files, all_reporters, checkpoint, data
                    )
                    results.append(run.run())
        summary = Summary.of(results)
        ranks.on_first(partial(write_text_atomic, folder / "summary.json", summary.to_json()))
    finally:
        all_reporters.finish(summary)
    return results


def _last_words(ranks: Ranks) -> None:
    """See `Grace`."""
    if ranks.is_first:
        os.write(2, b"fds-dist: interrupted, and another rank does not answer; the same line goes on\n")
