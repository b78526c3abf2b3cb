"""`python -m fds_dist.commands.sweep`: what launch/sweep.sh needs besides W&B's own agent.

Exit status: 0 done, 2 the sweep file is wrong (one line per fault), 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from fds_dist.commands import DONE, FAILED, INTERRUPTED, WRONG_INPUT
from fds_dist.commands.sweep.file import read_sweep
from fds_dist.commands.sweep.local import run_locally
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import is_positive_int
from fds_dist.config import Draft
from fds_dist.tracking.wandb_session import DEFAULT_PROJECT


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as error:
        return _explain(error.faults, WRONG_INPUT)
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fds_dist.commands.sweep", description="Sweeps over configs.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, run, text in (
        ("check", _check, "whether the file is right and its first job could start; starts nothing"),
        ("create", _create, "create the sweep in W&B and print ENTITY/PROJECT/SWEEP_ID"),
        ("local", _local, "run the jobs here, one after the other, without W&B"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("file", type=Path, metavar="FILE", help="a sweep file, such as configs/sweeps/random.yaml")
    command.add_argument("--count", type=int, metavar="N", help="the first N jobs (default: all)")
    command.add_argument("--output-dir", type=Path, default="runs/sweeps", metavar="DIR", help="default: %(default)s")
    return parser


def _check(options: argparse.Namespace) -> int:
    sweep = read_sweep(options.file, _build_faults)
    names = ", ".join(parameter.name for parameter in sweep.parameters)
    print(f"{options.file}: {sweep.method} over {names}; nothing is wrong")
    return DONE


def _create(options: argparse.Namespace) -> int:
    sweep = read_sweep(options.file)
    import wandb

    project = os.environ.get("WANDB_PROJECT") or sweep.content.get("project") or DEFAULT_PROJECT
    entity = os.environ.get("WANDB_ENTITY") or sweep.content.get("entity")
    # W&B's agents name a program, whether or not the command uses it.
    content = {"program": "fds_dist", "name": sweep.name, **sweep.content}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # for wandb's own words; the answer alone goes to standard output
            sweep_id = wandb.sweep(content, project=project, entity=entity)
    except wandb.Error as error:
        return _explain([f"W&B did not create the sweep: {' '.join(str(error).split())}"], FAILED)
    entity, project = (os.environ.get(name) for name in ("WANDB_ENTITY", "WANDB_PROJECT"))  # wandb says so where it is
    print("/".join(filter(None, (entity, project, sweep_id))))
    return DONE


def _local(options: argparse.Namespace) -> int:
    if options.count is not None and not is_positive_int(options.count):
        raise UserError(Fault("--count", f"{options.count} is out of range", "a whole number of at least 1"))
    sweep = read_sweep(options.file)
    results, folder = run_locally(sweep, options.output_dir, options.count)
    from fds_dist.commands.sweep.table import print_results

    print_results(sweep, results)
    print(f"results: {folder} (results.jsonl, the runs and their logs)")
    return DONE if all(result.finished for result in results) else FAILED


def _build_faults(draft: Draft) -> Sequence[Fault]:
    """What `fds-dist check` would say, the mesh aside: how many ranks there are is up to the command's launcher."""
    from fds_dist.build import build
    from fds_dist.distributed.environment import LaunchEnvironment

    try:
        build(draft, LaunchEnvironment())
    except UserError as error:
        return [fault for fault in error.faults if fault.key.partition(".")[0] != "mesh"]
    return []


def _explain(lines: Iterable[object], status: int) -> int:
    for line in lines:
        print(f"fds-dist: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
