"""What each command of the command line calls, and what it prints of the result.

A command's module is imported only when the command runs, so that `--help` needs no torch.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from tempfile import TemporaryFile

from fds_dist.commands import DONE, FAILED
from fds_dist.common.access import writable
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import WriteFailed, is_full, write_output
from fds_dist.common.output import close_output
from fds_dist.common.paths import expand_path
from fds_dist.distributed.environment import read_environment


def run_optimize(options: Namespace) -> int:
    from fds_dist.commands.optimize.command import optimize

    optimize(options.config, options.overrides, resume=options.resume)
    return DONE


def run_check(options: Namespace) -> int:
    from fds_dist.commands.check.command import check, print_check

    built, report = check(options.config, options.overrides, world_size=options.world_size)
    if _is_first():
        print_check(built.config, built.problem, report, built.remarks)
    return DONE


def run_verify(options: Namespace) -> int:
    from fds_dist.commands.verify.command import print_verification, verify

    built, verification = verify(options.config, options.overrides, steps=options.steps, progress=True)
    if _is_first():
        print_verification(built.problem, verification)
    return DONE if verification.passed else FAILED


def run_retrain(options: Namespace) -> int:
    from fds_dist.commands.retrain.command import retrain

    seeds = [] if options.seeds is None else [f"seeds={options.seeds}"]
    done = retrain(options.config, [*options.overrides, *seeds])
    if _is_first():
        print(f"results: {done.folder} (summary.json; of each seed history.jsonl, last.safetensors, best.safetensors)")
    return DONE


def run_compare(options: Namespace) -> int:
    from fds_dist.commands.compare.command import compare
    from fds_dist.commands.compare.table import print_comparison

    result = compare(options.config, options.overrides)
    if _is_first():
        print_comparison(result.comparison)
        print(f"results: {result.folder} (compare.json, plots)")
    return DONE


def run_noise(options: Namespace) -> int:
    from fds_dist.commands.noise.command import NOISE_RUNS, NOISE_STEPS, noise
    from fds_dist.commands.noise.report import print_noise
    from fds_dist.common.console import default_console

    runs = NOISE_RUNS if options.runs is None else options.runs
    steps = NOISE_STEPS if options.steps is None else options.steps
    result = noise(options.config, options.overrides, runs=runs, steps=steps)
    if _is_first():
        print_noise(result.report, default_console())
        print(f"results: {result.folder} (noise.json, plots)")
    return DONE


def run_report(options: Namespace) -> int:
    from fds_dist.commands.report.command import report

    page = report([options.config, *options.overrides], options.output, watch=options.watch)
    if _is_first():
        print(f"report: {page}")
    return DONE


def run_bench(options: Namespace) -> int:
    from fds_dist.commands.bench.command import SECONDS, bench
    from fds_dist.commands.bench.report import print_bench
    from fds_dist.common.console import default_console

    if options.json and not options.json.endswith(".json"):  # a config, perhaps, which must not be written over
        raise UserError(Fault("--json", f"{options.json} does not end with .json", "--json, or --json FILE.json"))
    seconds = SECONDS if options.seconds is None else options.seconds
    if options.json and read_environment().world_size == 1:  # no other rank waits in vain
        with writable(folder := expand_path(options.json, "--json").parent, "--json"), TemporaryFile(dir=folder):
            pass
    report = bench(options.config, options.overrides, seconds=seconds, progress=True)
    if not _is_first():
        return DONE
    if options.json is None:
        print_bench(report, default_console())
    elif options.json:
        try:
            _write(options.json, f"{report.to_json()}\n", "--json")
        except (UserError, WriteFailed):
            print(report.to_json())  # which took a while to measure
            raise
    else:
        print(report.to_json())
    return DONE


def run_export(options: Namespace) -> int:
    from fds_dist.commands.export import export

    text = export(options.config, options.format, horizon=options.horizon, schedule=options.schedule, best=options.best)
    if not _is_first():
        return DONE
    if options.output is None:
        _print_to_pipe(text)
        return DONE
    _write(options.output, text, "--output")
    return DONE


def run_sweep(options: Namespace) -> int:
    from fds_dist.commands.sweep.command import sweep

    return sweep(
        options.config,
        local=options.local,
        check=options.check,
        create=options.create,
        count=options.count,
        output_dir=options.output_dir,
    )


def run_init(options: Namespace) -> int:
    from fds_dist.commands.init import init

    if _is_first():
        files = [shlex.quote(str(file)) for file in init(options.config, options.shipped, options.task)]
        print(f"written: {' and '.join(files)}\nnext: fds-dist check {files[0]}, then fds-dist optimize {files[0]}")
    return DONE


def run_config(options: Namespace) -> int:
    from fds_dist.commands.config import explain

    if _is_first():
        _print_to_pipe(explain(options.config, options.overrides))
    return DONE


def run_schema(options: Namespace) -> int:
    from fds_dist.config.json_schema import schema_text

    if _is_first():
        _print_to_pipe(schema_text())
    return DONE


def _is_first() -> bool:
    """Whether this is rank 0, the one that prints."""
    return read_environment().rank == 0


def _print_to_pipe(text: str) -> None:
    """Prints `text`; stops quietly when the pipe is closed, as by `head`."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        close_output()


def _write(path: str, text: str, option: str) -> None:
    """Writes the file that `option` names."""
    file = expand_path(path, option)
    try:
        write_output(file, text)
    except WriteFailed as error:
        if is_full(error):
            raise
        raise UserError(Fault(option, f"{file}: {error.strerror}", "a file to write")) from None
