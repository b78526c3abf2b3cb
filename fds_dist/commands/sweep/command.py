"""`fds-dist sweep`: checks a sweep file, and runs its jobs with W&B's agent or without W&B."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fds_dist.commands import DONE, FAILED, CommandFailed
from fds_dist.commands.sweep.file import Sweep, read_sweep
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.paths import expand_path
from fds_dist.common.registry import is_positive_int
from fds_dist.common.secrets import hide_secret_arguments, hide_secrets
from fds_dist.config import Draft
from fds_dist.tracking.wandb_session import DEFAULT_PROJECT

EXPECTED_SECRET = "${env:NAME}, a variable that is set where the jobs run; or --local"

SUFFIXES = (".yaml", ".yml")
"""Endings of sweep files. Any other text that is not a file is the name of a sweep in W&B."""


def sweep(source: str, *, local: bool, check: bool, create: bool, count: int | None, output_dir: str | Path) -> int:
    """Runs the jobs of a sweep, and returns the exit status. With W&B it does not return: W&B's agent replaces it.

    Args:
        source: a sweep file, or the ENTITY/PROJECT/SWEEP_ID of an existing sweep.
        local: run the jobs here, without W&B.
        check: only check the file.
        create: only create the sweep in W&B and print its name.
        count: the largest number of jobs to run.
        output_dir: where `local` keeps its results.

    Raises:
        UserError: with every fault of the file; nothing was started.
        CommandFailed: W&B did not create the sweep.
    """
    chosen = [option for option, is_set in (("--local", local), ("--check", check), ("--create", create)) if is_set]
    if len(chosen) > 1:
        raise UserError(Fault(chosen[1], f"cannot be combined with {chosen[0]}", "one of the two"))
    if count is not None and not is_positive_int(count):
        raise UserError(Fault("--count", f"{count} is out of range", "a whole number of at least 1"))
    path = expand_path(source, "FILE")
    if path.suffix not in SUFFIXES and not os.path.isfile(path):
        if chosen:
            raise UserError(Fault(chosen[0], f"{source} is not a sweep file", "a file such as sweep.yaml"))
        return _work(source, count)
    with _environment_of_jobs():
        return _sweep_of_file(path, local, check, create, count, output_dir)


def _sweep_of_file(
    path: Path, local: bool, check: bool, create: bool, count: int | None, output_dir: str | Path
) -> int:
    checked = read_sweep(path, _build_faults)
    if not local and not check and (faults := secret_faults(checked)):
        raise UserError(faults)
    if create:
        print(_created(checked))
        return DONE
    print(f"{path}: {checked.method} over {', '.join(each.name for each in checked.parameters)}; no mistakes found")
    if check:
        return DONE
    if local:
        return _run_here(checked, expand_path(output_dir, "--output-dir"), count)
    name = _created(checked)
    print(f"To join from another machine: fds-dist sweep {name}")
    return _work(name, count)


def secret_faults(checked: Sweep) -> list[Fault]:
    """What looks secret in a sweep that W&B's server is to keep, and to hand to agents."""
    shown = zip(hide_secret_arguments(checked.command.parts), checked.command.parts, strict=True)
    faults = [
        Fault("command", f"{hidden} would be on W&B's server", EXPECTED_SECRET)
        for hidden, part in shown
        if hidden != part
    ]
    parameters = checked.content["parameters"]
    return faults + [
        Fault(f"parameters.{name}", "a secret would be on W&B's server", EXPECTED_SECRET)
        for name, spec in parameters.items()
        if hide_secrets({name: spec}) != {name: spec}
    ]


@contextlib.contextmanager
def _environment_of_jobs() -> Iterator[None]:
    """For a sweep's command: NPROC, and a PATH with this Python's programs, such as torchrun; afterwards as before."""
    before = {name: os.environ.get(name) for name in ("PATH", "NPROC")}
    programs, path = os.path.dirname(sys.executable), before["PATH"] or ""
    if programs not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, (programs, path)))
    if not before["NPROC"]:
        import torch

        os.environ["NPROC"] = str(max(1, torch.cuda.device_count()))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _created(checked: Sweep) -> str:
    """Creates the sweep in W&B; returns ENTITY/PROJECT/SWEEP_ID.

    Raises:
        CommandFailed: W&B refused the sweep, or could not be reached.
    """
    import wandb

    content = checked.content
    project = os.environ.get("WANDB_PROJECT") or content.get("project") or DEFAULT_PROJECT
    entity = os.environ.get("WANDB_ENTITY") or content.get("entity")
    # W&B requires a program, whether or not the command uses it.
    content = {"program": "fds_dist", "name": checked.name, **content}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # wandb prints messages; standard output gets only the name
            sweep_id = wandb.sweep(content, project=project, entity=entity)
    except wandb.Error as error:
        raise CommandFailed(f"W&B did not create the sweep: {' '.join(str(error).split())}") from None
    entity, project = (os.environ.get(name) for name in ("WANDB_ENTITY", "WANDB_PROJECT"))  # set by wandb.sweep
    return "/".join(filter(None, (entity, project, sweep_id)))


def _work(name: str, count: int | None) -> int:
    """Replaces this process by W&B's agent, which forwards signals to its job."""
    limit = [] if count is None else ["--count", str(count)]
    sys.stdout.flush()
    with _environment_of_jobs():
        os.execv(sys.executable, [sys.executable, "-m", "wandb", "agent", "--forward-signals", *limit, name])


def _run_here(checked: Sweep, output_dir: Path, count: int | None) -> int:
    """Runs the jobs one after the other, and prints a table of their results."""
    from fds_dist.commands.sweep.local import run_locally
    from fds_dist.commands.sweep.table import print_results

    results, folder = run_locally(checked, output_dir, count)
    print_results(checked, results)
    print(f"results: {folder} (results.jsonl, the runs and their logs)")
    return DONE if all(result.finished for result in results) else FAILED


def _build_faults(draft: Draft) -> Sequence[Fault]:
    """The faults that `fds-dist check` finds, except the mesh's: the command's launcher decides the number of ranks."""
    from fds_dist.build import build
    from fds_dist.distributed.arithmetic import arithmetic_restored
    from fds_dist.distributed.environment import LaunchEnvironment

    try:
        with arithmetic_restored():
            build(draft, LaunchEnvironment())
    except UserError as error:
        return [fault for fault in error.faults if fault.key.partition(".")[0] != "mesh"]
    return []
