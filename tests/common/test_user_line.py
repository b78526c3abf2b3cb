"""The line of the user's own code that an exception came from, wherever the libraries lie."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import fds_dist
from fds_dist.common.faults import user_line

TASK = """
import sys

from own_tasks import Blobs
from torch.nn import functional as F

import fds_dist


class Wrong(Blobs):
    def loss(self, output, target):
        return F.cross_entropy(output, target[1:])  # seven targets for eight outputs: torch raises


if __name__ == "__main__":
    assert F.__file__.startswith(sys.argv[1]) and sys.prefix != sys.argv[2]
    config = {"task": {"name": "wrong"}, "hyperparameters": {"lr": {"init": 0.1, "step": 0.1}}}
    try:
        fds_dist.check(config, task=Wrong())
    except fds_dist.UserError as error:
        print(error)
"""


def test_it_is_found_where_the_libraries_belong_to_another_environment(tmp_path: Path) -> None:
    """As on a cluster, where a virtual environment stands on the packages of a module's Python."""
    environment, script = tmp_path / "environment", tmp_path / "script.py"
    venv.create(environment, with_pip=False)
    (own_packages,) = environment.glob("lib/python*/site-packages")
    libraries = sysconfig.get_path("purelib")
    support = Path(__file__).resolve().parents[1] / "support"
    folders = [libraries, str(Path(fds_dist.__file__).parents[1]), str(support)]
    (own_packages / "libraries.pth").write_text("\n".join(folders))
    script.write_text(TASK)
    run = subprocess.run(
        [environment / "bin" / "python", script, libraries, sys.prefix],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    line = 1 + TASK.splitlines().index(next(line for line in TASK.splitlines() if "target[1:]" in line))
    assert f" at script.py:{line}" in run.stdout and "site-packages" not in run.stdout


def test_installed_packages_are_not_the_users_own(tmp_path: Path) -> None:
    """The innermost line below the current folder is not the user's where an environment lies there."""
    package = tmp_path / "environment" / "lib" / "dist-packages" / "library.py"
    package.parent.mkdir(parents=True)
    package.write_text("def fail():\n    raise ValueError\n")
    names: dict[str, object] = {}
    exec(compile(package.read_text(), str(package), "exec"), names)
    try:
        names["fail"]()  # type: ignore[operator]
    except ValueError as error:
        assert user_line(error).startswith(" at ") and Path(__file__).name in user_line(error)
