"""A disk that is full where a file is written whose name matches: in this process, or as a program in a rank's.

`python full_disk.py PATTERN ARGUMENTS...` is `fds-dist ARGUMENTS...` on such a disk.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

AT_ITS_START = ("config.yaml", ".lock")
"""Without which a search has not begun."""
IN_A_SEARCH = (
    *("environment.json", "history.jsonl", "schedule.json", "schedule_average.json", "schedule_best.json"),
    *("schedule_last.json", "outer_0001.json", "outer_0002.json", "judge.jsonl", "judged.json"),
)
BESIDE_A_SEARCH = ("curves.jsonl", "index.html", "rank-0.safetensors", "manifest.json")
"""Which go without, with a note."""
IN_A_RETRAINING = (
    *(f"{name}.safetensors" for name in ("best", "last", "last_trained", "state")),
    *("history.jsonl", "summary.json"),
)
IN_A_COMPARISON = (
    *("settings.jsonl", "trials-0.jsonl", "judge.jsonl", "retrained-0.jsonl", "compare.json"),
    "compare.p[dn][fg]",
)
IN_A_STUDY_OF_NOISE = ("*.npy", "noise.json", "noise.p[dn][fg]")


@contextmanager
def full_disk(pattern: str, number: int = errno.ENOSPC) -> Iterator[list[str]]:
    """Inside, what is written to a file of a matching name does not reach the disk. Yields the files that met with it.

    A file that is written whole has a temporary name first, `.NAME.PROCESS.tmp`; the pattern is for NAME.
    """
    usual, met = os.fsync, list[str]()

    def fsync(file: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{file}"))
        if name.startswith(".") and name.endswith(".tmp"):
            name = name[1:].rsplit(".", 2)[0]
        if fnmatch.fnmatch(name, pattern):
            met.append(name)
            raise OSError(number, os.strerror(number))
        usual(file)

    os.fsync = fsync
    try:
        yield met
    finally:
        os.fsync = usual


if __name__ == "__main__":
    from fds_dist.cli import main

    with full_disk(sys.argv[1]):
        sys.exit(main(sys.argv[2:]))
