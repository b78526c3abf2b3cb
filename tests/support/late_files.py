"""A rank whose host sees the files of a folder late, as over a network: once it has changed something there itself.

`python late_files.py FOLDER ARGUMENTS...` is `fds-dist ARGUMENTS...`, where rank 1 sees no file in FOLDER until then.
What shows them to it leaves the file `shown` in the current folder.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def hide(folder: Path) -> None:
    """Lets `folder` have no files until this process makes one there."""
    marker = Path("shown").absolute()

    def late(call: Callable[..., Any]) -> Callable[..., Any]:
        def answer(path: Any, *arguments: Any, **options: Any) -> Any:
            is_path = isinstance(path, str | os.PathLike)
            if is_path and Path(os.path.abspath(path)).parent == folder and not os.access(marker, os.F_OK):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return call(path, *arguments, **options)

        return answer

    def touch(path: Path) -> None:
        if path.absolute().parent == folder:
            os.close(os.open(marker, os.O_CREAT))

    for module, name in ((os, "stat"), (io, "open")):  # by which `pathlib` and `os.path` look at files and read them
        setattr(module, name, late(getattr(module, name)))
    Path.touch = touch  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    from fds_dist.cli import main

    if os.environ["RANK"] == "1":
        hide(Path(sys.argv[1]).absolute())
    sys.exit(main(sys.argv[2:]))
