"""Paths as a person writes them: `~`, `$NAME`, `${NAME}` and `${env:NAME}` stand for what a shell would put there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.variables import filled_in, missing_variables

EXPECTED = "a path such as runs, ~/runs or $HOME/runs"
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


def expand_path(path: str | Path, key: str = "") -> Path:
    """`path` with a leading `~` or `~USER` and all environment variables filled in.

    Args:
        key: what a fault names: the config's key, or the argument.

    Raises:
        UserError: a variable is not set, or a user is unknown. Left as it is, the name would become a folder's.
    """
    missing, text = missing_variables(str(path)), filled_in(str(path))
    names = dict.fromkeys(plain or braced for plain, braced in _VARIABLE.findall(text))
    unset = [*missing, *(name for name in names if name not in os.environ)]
    home = os.path.expanduser(text)
    problems = [f"there is no environment variable {name}" for name in unset]
    if home == text and text.startswith("~"):
        problems.append(f"there is no home folder of {text.partition('/')[0]}")
    if problems:
        raise UserError(Fault(key, f"{text}: {problem}", EXPECTED) for problem in problems)
    return Path(os.path.expandvars(home))
