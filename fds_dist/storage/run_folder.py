"""A run's folder: its name, and the files in it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fds_dist.common.access import access_problem, readable_by_user, this_user
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import WriteFailed, is_full, read_json
from fds_dist.common.registry import nearest

RESULT = "result"
"""Names the schedule to use, one of the candidates."""

CANDIDATES = ("average", "best", "last")
"""The candidates for the result that have a file of their own; see `fds_dist.outer.candidates`."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, which gives the same run again."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """The `environment_info` of the last start."""
        return self.path / "environment.json"

    @property
    def history(self) -> Path:
        """One line per outer step."""
        return self.path / "history.jsonl"

    @property
    def curves(self) -> Path:
        """The training losses of each outer step's inner run, one line per outer step; older folders have none."""
        return self.path / "curves.jsonl"

    @property
    def schedule(self) -> Path:
        """The result: the schedule to use."""
        return self.path / "schedule.json"

    def candidate(self, name: str) -> Path:
        """The schedule called `name`: `RESULT`, or one of `CANDIDATES`.

        Folders of earlier versions have no file of the last values: their result is the last values.
        """
        path = self.path / f"schedule_{name}.json"
        return self.schedule if name == RESULT or (name == "last" and not path.is_file()) else path

    @property
    def judged_runs(self) -> Path:
        """One line per run in which a candidate was judged."""
        return self.path / "judge.jsonl"

    @property
    def verdict(self) -> Path:
        """What the judging has shown; absent where nothing was judged."""
        return self.path / "judged.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def page(self) -> Path:
        """The page of the report."""
        return self.report / "index.html"

    @property
    def read_by_all(self) -> tuple[Path, ...]:
        """The files that a command reads on every rank, where the folder is its input; the others rank 0 reads."""
        return self.config, self.environment, self.history, self.schedule

    def faults(self, key: str = "RUN_DIR", file: str = "config.yaml", expected: str = "OUTPUT_DIR/NAME") -> list[Fault]:
        """One fault if `file` is not in the folder, with the nearest folder beside it that has the file.

        Args:
            key: the argument or key by which the user names the folder.
            file: the name of the file that the folder must hold.
            expected: the kind of folder that would be right.
        """
        if os.path.isfile(self.path / file) and not access_problem(self.path):
            return []
        if not os.path.isfile(self.path) and (problem := access_problem(self.path)):
            return [Fault(key, problem, readable_by_user())]
        name = nearest(self.path.name, _holding(self.path.parent, file))
        problem = f"{self.path} is not the folder of a run: it holds no {file}"
        if os.path.isfile(self.config):
            problem = f"{self.path} holds no {file}"
        return [Fault(key, problem, expected, str(self.path.with_name(name)) if name else "")]

    def checked(self, key: str = "RUN_DIR", expected: str = "OUTPUT_DIR/NAME") -> RunFolder:
        """The folder itself, after a check.

        Raises:
            UserError: it is not the folder of a run; see `faults`.
        """
        if faults := self.faults(key, expected=expected):
            raise UserError(faults)
        return self


def _holding(folder: Path, file: str) -> list[str]:
    """The names of the folders in `folder` that hold such a file; none where it cannot be read."""
    with suppress(OSError):
        return [path.parent.name for path in folder.glob(f"*/{file}")]
    return []


def create_run_folder(output_dir: Path | str, name: str | None, task: str, model: str | None, now: datetime) -> Path:
    """Creates OUTPUT_DIR/NAME and returns it; by default NAME is '<task>-<model>-<YYYYmmdd-HHMMSS>'.

    An existing folder is never used again: the new name gets '-2', '-3', ... Two processes that ask for the same
    name at the same time get two folders.

    Raises:
        UserError: the name is not the name of a folder, or the folder cannot be created.
    """
    if name is None:
        parts = (_plain(task), _plain(model or ""), now.strftime("%Y%m%d-%H%M%S"))
        name = "-".join(filter(None, parts))
    elif name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise UserError(Fault("name", f"{name!r} is not a folder's name", "a name without slashes"))
    output_dir = Path(output_dir)
    path = output_dir / name
    number = 1
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1
                path = output_dir / f"{name}-{number}"
    except OSError as error:
        if is_full(error):
            raise WriteFailed(error.errno, error.strerror, str(path)) from None
        problem = f"cannot create a folder in {output_dir}: {access_problem(output_dir) or error.strerror}"
        raise UserError(Fault("output_dir", problem, f"a folder in which {this_user()} may write")) from None


def folder_of_launch(output_dir: Path | str, search: int, launchers: Collection[str]) -> Path | None:
    """The folder whose environment.json names this search by one of these launchers; None if there is none."""
    for name in _holding(Path(output_dir), "environment.json"):
        path = Path(output_dir, name)
        try:
            launch = read_json(RunFolder(path).environment)["launch"]
            if launch["search"] == search and not set(launchers).isdisjoint(launch["launchers"]):
                return path
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not the file of a search, or damaged
    return None


def _plain(name: str) -> str:
    """The name of a task or model, perhaps 'package.module:function', as part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")
