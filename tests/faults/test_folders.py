"""Folders that cannot be read or written: every command says in one line which folder it is and what is needed.

The superuser may do everything. Where it runs the tests, the commands run as the user `nobody`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from blob_searches import CONFIG

import fds_dist
from fds_dist.commands.calls import run_bench
from fds_dist.commands.sweep.command import sweep

NOBODY = 65534
SECONDS = 0.01
"""That a benchmark may take, which it does not in fact."""
SWEEP = """
method: grid
command: ["${env}", python, -m, fds_dist, optimize, CONFIG, "${args_no_hyphens}"]
parameters: {seed: {values: [0]}}
"""


@contextmanager
def without_rights() -> Iterator[None]:
    """Inside, this process is a usual user."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture(scope="module")
def run_dir() -> Iterator[Path]:
    """A finished run with a retraining, in a place that every user may enter. Imports all that the commands need."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    run = fds_dist.optimize(CONFIG, ["outer.steps=1", f"output_dir={place}"], progress=False).run_dir
    (run / "config.yaml").chmod(0o644)
    (place / "sweep.yaml").write_text(SWEEP.replace("CONFIG", str(run / "config.yaml")))
    fds_dist.retrain(run, ["epochs=1"], progress=False)
    for name, command in (("compare", compare), ("noise", noise)):
        command(place / name)
    for name in ("verify", "bench"):
        READING[name](run)
    yield run
    shutil.rmtree(place)


def study(output_dir: Path) -> dict[str, Any]:
    methods = {"compare": {"methods": ["greedy"], "seeds": 1, "judge_seeds": 1}, "outer": {"steps": 1}}
    return CONFIG | methods | {"output_dir": str(output_dir)}


def compare(output_dir: Path) -> object:
    return fds_dist.compare(study(output_dir), progress=False)


def noise(output_dir: Path) -> object:
    return fds_dist.noise(study(output_dir), runs=4, steps=4, progress=False)


def bench_into(folder: Path) -> object:
    options = {"config": CONFIG, "overrides": [], "json": str(folder / "bench.json"), "seconds": SECONDS}
    return run_bench(Namespace(**options))


def local_sweep(output_dir: Path) -> object:
    file = output_dir.parents[1] / "sweep.yaml"
    return sweep(str(file), local=True, check=False, create=False, count=None, output_dir=output_dir)


# --- what may be wrong with a folder ---


def of_another_user(folder: Path) -> None:
    """Everyone may read it; only its owner may write."""


def private(folder: Path) -> None:
    folder.chmod(0o700)


def read_only(folder: Path) -> None:
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o555)


def dangling(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.with_name("gone"))


def looping(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def below_private(folder: Path) -> None:
    folder.parent.chmod(0o700)


NOT_WRITABLE = (of_another_user, read_only)
NOT_READABLE = (private, dangling, looping, a_file, below_private)
ALL = (*NOT_WRITABLE, *NOT_READABLE)

READING: dict[str, Callable[[Path], object]] = {
    "load_run": fds_dist.load_run,
    "load_schedule": fds_dist.load_schedule,
    "export": lambda folder: fds_dist.export(folder, "csv"),
    "check": lambda folder: fds_dist.check(str(folder)),
    "verify": lambda folder: fds_dist.verify(str(folder), steps=2),
    "bench": lambda folder: fds_dist.bench(str(folder), seconds=SECONDS),
}
WRITING_IN_A_RUN: dict[str, Callable[[Path], object]] = {
    "resume": lambda folder: fds_dist.optimize(resume=folder, overrides=["outer.steps=2"], progress=False),
    "retrain": lambda folder: fds_dist.retrain(folder, ["epochs=1", "restart=true"], progress=False),
    "report": fds_dist.report,
}
WRITING: dict[str, Callable[[Path], object]] = {
    "optimize": lambda folder: fds_dist.optimize(CONFIG | {"output_dir": str(folder)}, progress=False),
    "compare": compare,
    "noise": noise,
    "sweep": local_sweep,
    "bench --json": bench_into,
}
REFUSED = [
    *((name, call, wrong) for name, call in READING.items() for wrong in NOT_READABLE),
    *((name, call, wrong) for name, call in (WRITING_IN_A_RUN | WRITING).items() for wrong in ALL),
]
"""Command, its call, and what is wrong with the folder that it gets: 86 cases."""


@pytest.fixture
def folder(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the run, to be damaged."""
    monkeypatch.chdir("/")
    place = run_dir.parent / tmp_path.name
    shutil.copytree(run_dir, place / "run")
    yield place / "run"
    shutil.rmtree(place)


def names_of(cases: list[tuple[str, Callable[[Path], object], Callable[[Path], None]]]) -> list[str]:
    return [f"{name}-{wrong.__name__}" for name, _, wrong in cases]


@pytest.mark.parametrize(("name", "call", "wrong"), REFUSED, ids=names_of(REFUSED))
def test_one_line_names_the_folder_and_what_is_needed(
    folder: Path, name: str, call: Callable[[Path], object], wrong: Callable[[Path], None]
) -> None:
    wrong(folder)
    with without_rights(), pytest.raises(fds_dist.UserError) as raised:
        call(folder)
    (fault,) = raised.value.faults
    assert str(folder) in str(fault)
    assert fault.expected or fault.suggestion


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("wrong", NOT_WRITABLE, ids=lambda wrong: wrong.__name__)
def test_who_reads_needs_no_right_to_write(folder: Path, name: str, wrong: Callable[[Path], None]) -> None:
    wrong(folder)
    with without_rights():
        READING[name](folder)


# --- gone in the middle ---


class Removes(fds_dist.Callback):
    """Removes the run's folder after the first outer step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def outer_step(self, record: fds_dist.OuterRecord) -> None:
        shutil.rmtree(self.folder)


def test_a_folder_that_goes_while_a_search_runs_ends_it_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(OSError, match=rf"^cannot write {folder}/history.jsonl: No such file or directory$"):
        fds_dist.optimize(CONFIG, [f"output_dir={tmp_path}"], callbacks=[Removes(folder)], progress=False)
    assert not folder.exists()
