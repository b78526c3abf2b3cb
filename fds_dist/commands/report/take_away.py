"""The result of a search in the page itself, to copy and to download: links that hold their files."""

from __future__ import annotations

from base64 import b64encode
from typing import NamedTuple

from fds_dist.commands.export import HOLDS, snippet, table
from fds_dist.commands.report.contents import RunContents
from fds_dist.common.faults import UserError
from fds_dist.storage.run_folder import RESULT

MOST_ROWS = 2000
"""Of a longer schedule the table has one row for several steps: `fds-dist export` writes all."""


class Download(NamedTuple):
    """A link that holds its file."""

    label: str
    file: str
    """The file's name."""
    link: str


class TakeAway(NamedTuple):
    """What a reader can take away."""

    downloads: list[Download]
    code: str
    """Python that trains with the schedule and needs only torch; "" where `problem` says why there is none."""
    problem: str


def take_away(run: RunContents) -> TakeAway | None:
    """The result of a run in the forms of `fds-dist export`; None before there is one."""
    schedule = run.result
    if schedule is None:
        return None
    try:
        code, problem = snippet(schedule, f"{run.name}/schedule.json, {HOLDS[RESULT]}"), ""
    except UserError as error:
        code, problem = "", "; ".join(map(str, error.faults))
    every = -(-schedule.horizon // MOST_ROWS)
    rows = "CSV, a row per step" if every == 1 else f"CSV, a row per {every} steps"
    files = {
        "schedule.json": ("JSON", schedule.to_json(), "application/json"),
        "schedule.csv": (rows, table(schedule, every=every), "text/csv"),
        "schedule.py": ("Python", code, "text/x-python"),
    }
    downloads = [
        Download(label, file, f"data:{kind};base64,{b64encode(text.encode()).decode()}")
        for file, (label, text, kind) in files.items()
        if text
    ]
    return TakeAway(downloads, code, problem)
