"""A sweep without W&B: runs its jobs one after the other, with the command that W&B's agent would run."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fds_dist.commands.sweep.command_line import as_overrides
from fds_dist.commands.sweep.file import Sweep
from fds_dist.common.access import check_writable
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import OWNER_ONLY, write_text_atomic, writing
from fds_dist.common.records import NonNegative, NotNaN, RecordFile, Whole
from fds_dist.common.secrets import hide_secret_arguments, hide_secrets
from fds_dist.common.words import duration
from fds_dist.config.yaml_text import dump_yaml
from fds_dist.storage.lock import locked
from fds_dist.storage.run_folder import RunFolder
from fds_dist.tracking.history import read_history

RESULTS = "results.jsonl"
"""One line for each finished or failed attempt at a job; a failed job that ran again has several lines."""

LAST_LINES = 15
"""Lines of a failed job's output that are shown."""

KILL_SECONDS = 60.0
"""Seconds that a job has to end after SIGTERM (torchrun gives its ranks 30)."""


@dataclass(frozen=True)
class JobResult:
    """One finished or failed attempt at a job: a line of `results.jsonl`."""

    job: Whole
    values: dict[str, Any]
    status: Literal["finished", "failed"]
    """'finished', or 'failed'."""
    exit_status: int
    seconds: NonNegative
    run_dir: str
    best_val_loss: NotNaN | None = None
    best_val_accuracy: NotNaN | None = None

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def run_locally(sweep: Sweep, output_dir: Path, count: int | None = None) -> tuple[list[JobResult], Path]:
    """Runs the jobs that are not finished yet, and prints the result of each.

    Args:
        output_dir: receives the folder NAME with `results.jsonl`, and with a run's folder and a log for each job.
        count: run the first `count` jobs; by default all, up to the file's `run_cap`.

    Returns:
        The last result of each job, and the folder.

    Raises:
        UserError: the method needs W&B; the number of jobs has no limit; the folder holds another sweep's results.
    """
    limit = _number_of_jobs(sweep, count)
    folder = output_dir / sweep.name
    with locked(folder, "fds-dist sweep", "--output-dir"):
        _claim(folder, sweep)
        return _run_all(sweep, folder, limit), folder


def _run_all(sweep: Sweep, folder: Path, limit: int | None) -> list[JobResult]:
    """Runs the first `limit` jobs as far as they are not finished; returns the last result of each."""
    file = RecordFile(folder / RESULTS, JobResult, "a file written by a sweep; delete it to run all jobs again")
    results = file.read()
    finished = {result.job for result in results if result.finished}
    jobs = list(itertools.islice(sweep.jobs(), limit))
    for number, values in enumerate(jobs):
        if number not in finished:
            shown = " ".join(hide_secret_arguments(as_overrides(values)))
            print(f"job {number + 1} of {len(jobs)}: {shown}", flush=True)
            results.append(_run(sweep, folder, number, values))
            file.append(results[-1:])
            print(f"  {_outcome(results[-1])}", flush=True)
    last = {result.job: result for result in results}
    return [last[number] for number in range(len(jobs))]


def _number_of_jobs(sweep: Sweep, count: int | None) -> int | None:
    """The number of jobs to run; None: all."""
    if sweep.method == "bayes":
        raise UserError(Fault("method", "bayes needs W&B", "grid or random, with --local"))
    limits = [limit for limit in (count, sweep.run_cap) if limit is not None]
    if sweep.method == "random" and not limits:
        raise UserError(Fault("run_cap", "is missing: random draws never end", "run_cap in the file, or --count N"))
    return min(limits, default=None)


def _claim(folder: Path, sweep: Sweep) -> None:
    """Records the jobs of the sweep, or finds those of an earlier call.

    Raises:
        UserError: the folder holds the results of other jobs.
    """
    jobs = dump_yaml({key: sweep.content[key] for key in ("method", "command", "parameters")}, width=110)
    record = folder / "sweep.yaml"
    if not record.exists():
        write_text_atomic(record, jobs, OWNER_ONLY)
    elif record.read_bytes() != jobs.encode():
        expected = "another name in the file, or move that folder away"
        raise UserError(Fault("name", f"{folder} holds the results of another sweep", expected))


def _run(sweep: Sweep, folder: Path, number: int, values: Mapping[str, Any]) -> JobResult:
    names = (f"job-{number + 1}" + (f"-try-{again}" if again > 1 else "") for again in itertools.count(1))
    run_dir = next(path for name in names if not (path := folder / name).exists() and not _log(path).exists())
    check_writable(folder, "--output-dir")  # on a full disk the job could not say why it fails
    line = sweep.command.line({**values, "output_dir": folder, "name": run_dir.name})
    began = time.monotonic()
    with writing(_log(run_dir)):
        log = _log(run_dir).open("wb")
    with log, _stopped_in_order() as started:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        started.append(process)
        status = process.wait()
    loss, accuracy = _best(run_dir)
    return JobResult(
        job=number,
        values=hide_secrets(values),
        status="finished" if status == 0 else "failed",
        exit_status=status,
        seconds=round(time.monotonic() - began, 3),
        run_dir=str(run_dir),
        best_val_loss=loss,
        best_val_accuracy=accuracy,
    )


@contextmanager
def _stopped_in_order() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Inside, an exception or a signal that ends this process first ends the processes in the list, in order."""
    started: list[subprocess.Popen[bytes]] = []

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    usual = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield started
    except BaseException:
        for process in started:
            process.terminate()
            try:
                process.wait(KILL_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _best(run_dir: Path) -> tuple[float | None, float | None]:
    """The lowest validation loss of a run, and the accuracy of the same outer step."""
    history = RunFolder(run_dir).history
    records = [record for record in read_history(history) if math.isfinite(record.val_loss)] if history.exists() else []
    best = min(records, key=lambda record: record.val_loss, default=None)
    return (None, None) if best is None else (best.val_loss, best.val_accuracy)


def _log(run_dir: Path) -> Path:
    return run_dir.with_name(f"{run_dir.name}.log")


def _outcome(result: JobResult) -> str:
    log = _log(Path(result.run_dir))
    if result.finished:
        loss = "" if result.best_val_loss is None else f", best validation loss {result.best_val_loss:.4g}"
        return f"finished in {duration(result.seconds)}{loss} ({result.run_dir})"
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
    return "\n    ".join([f"failed with status {result.exit_status} after {duration(result.seconds)} ({log})", *last])
