"""Turns pydantic's errors into faults, with the nearest valid key for an unknown one."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fds_dist.common.faults import Fault
from fds_dist.common.kinds import FAULT, fault_of, show
from fds_dist.common.optimizers import HYPERPARAMETERS
from fds_dist.common.registry import nearest
from fds_dist.config.keys import all_keys, general, keys_of
from fds_dist.config.references import KeyPath
from fds_dist.config.schema import Config

Path = KeyPath

KNOWN_ELSEWHERE = {
    **{name: f"hyperparameters.{name}" for name in HYPERPARAMETERS},
    "learning_rate": "hyperparameters.lr",
    "batch_size": "task.batch_size",
}
"""Names that users may write in the wrong place → the right key. The schema leaves these keys open."""

EXPECTED_HERE = {
    "task": "a mapping with the task's name, such as {name: digits}",
    "task.name": "the name of a task, or package.module:function",
    "model": "a mapping with the network's name, such as {name: lenet}",
    "model.name": "the name of a network, or package.module:function",
    "hyperparameters": "a mapping such as {lr: {init: 0.1, step: 0.1}}",
    "hyperparameters.NAME.init": "a number",
    "hyperparameters.NAME.step": "a number above 0",
}


class Finding(NamedTuple):
    """A fault and its place."""

    fault: Fault
    path: Path
    """The place of the wrong value, or the place where a value is missing."""

    missing: bool = False
    related: tuple[str, ...] = ()
    """Dotted keys that cause the fault. If one of them was changed, the fault says nothing about the user's input."""

    meant: str = ""
    """The valid key that the user probably meant by an unknown one."""


def dotted(path: Path) -> str:
    """The path as the user would write it: `("inner", "epochs", 2)` → `inner.epochs[2]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def findings(error: ValidationError) -> list[Finding]:
    """Pydantic's errors as findings, unknown keys first: an unknown key may explain why another one is missing."""
    return sorted(map(_finding, error.errors(include_url=False)), key=lambda finding: finding.missing)


def _finding(detail: ErrorDetails) -> Finding:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    path = detail["loc"]
    if kind == FAULT and path[-2:] == (value, "[key]"):  # pydantic's form for a wrong name, as opposed to a wrong value
        path = path[:-1]
    key = dotted(path)
    if kind == "extra_forbidden":
        meant = suggested_key(path)
        return Finding(Fault(key, "unknown key", suggestion=meant), path, meant=meant)
    if kind == "missing":
        return Finding(Fault(key, "is missing", EXPECTED_HERE.get(general(path), "")), path, missing=True)
    if kind == "too_short":
        return Finding(Fault(key, f"{show(value)} is empty", "at least one entry"), path, related=(key,))
    related = context["related"] if kind == FAULT else ()
    return Finding(fault_of(key, detail, EXPECTED_HERE.get(general(path), "")), path, related=related)


def suggested_key(path: Path) -> str:
    """The valid dotted key nearest to an unknown one, first at the same level, then anywhere; "" if none is similar."""
    parent, name = general(path[:-1]), str(path[-1])
    keys = [key.name for key in all_keys(keys_of(Config))]
    siblings = [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == parent]
    if sibling := nearest(name, siblings):
        return dotted((*path[:-1], sibling))
    elsewhere = dict(KNOWN_ELSEWHERE)
    for key in keys:
        elsewhere.setdefault(key.rpartition(".")[2], key)
    return elsewhere.get(name) or elsewhere.get(nearest(name, elsewhere), "")
