"""What must be the same on all ranks, compared before a collective depends on it; each difference in one line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import show
from fds_dist.common.secrets import hide_secrets
from fds_dist.common.words import counted, plural
from fds_dist.distributed.agreement import leave_last, told_by_all
from fds_dist.distributed.environment import LaunchEnvironment

Facts = Mapping[str, Any]
"""Key → a plain value, or more facts below that key."""

SAME = "the same on all ranks"
SEED_ALONE = "the same on all ranks: it may depend on its arguments and the seed alone"
EXPECTED = {"task.train_batches": SEED_ALONE, "task.val_batches": SEED_ALONE, "initial weights": SEED_ALONE}
"""Key → what is expected in place of `SAME`."""

MOST = 10
"""Faults that are told; the first ones are the cause of the others."""

ABSENT = None
"""In place of a fact that a rank does not have."""

_Leaf = Sequence[str]
"""A value as it is shown, and a digest of the value itself."""


def require_alike(environment: LaunchEnvironment, facts: Facts | None) -> None:
    """Compares what each rank passes; all ranks call this alike, before there is a process group.

    Digests cross first, the facts only where those differ. Values whose keys look like secrets are compared, not shown.

    Args:
        facts: None on a rank that has none; then nothing is compared.

    Raises:
        UserError: on every rank, with a fault for each fact that differs; it names the ranks and their values.
    """
    if not environment.distributed:
        return
    leaves = None if facts is None else _leaves(facts, hide_secrets(facts))
    digests = told_by_all(environment, None if leaves is None else _digest(leaves))
    if None in digests or len(set(digests)) == 1:
        return
    faults = differences(told_by_all(environment, leaves))
    leave_last(environment)
    more = len(faults) - MOST
    raise UserError(faults[:MOST] + ([Fault("", f"and {counted(more, 'further difference')}")] if more > 0 else []))


def differences(everyone: Sequence[Any], path: tuple[str, ...] = ()) -> list[Fault]:
    """A fault for each fact that is not the same in all entries of `everyone`, one per rank."""
    if all(entry == everyone[0] for entry in everyone):
        return []
    if all(isinstance(entry, dict) for entry in everyone):
        keys = dict.fromkeys(key for entry in everyone for key in entry)
        return [fault for key in keys for fault in differences([entry.get(key) for entry in everyone], (*path, key))]
    key, ranks = ".".join(path), {}
    for rank, entry in enumerate(everyone):
        ranks.setdefault(json.dumps(entry), []).append(rank)
    texts = {text: _shown(json.loads(text)) for text in ranks}
    names = {text: f"{plural(len(each), 'rank')} {', '.join(map(str, each))}" for text, each in ranks.items()}
    if len(set(texts.values())) == len(texts):
        problem = ", ".join(f"{texts[text]} on {names[text]}" for text in ranks)
    else:  # secrets, and values too long to be shown
        problem = f"{next(iter(texts.values()))} is another value on {' and on '.join(names.values())}"
    return [Fault(key, problem, EXPECTED.get(key, SAME))]


def _shown(entry: Any) -> str:
    if entry is ABSENT:
        return "left out"
    return "given" if isinstance(entry, dict) else str(entry[0])


def _leaves(facts: Any, shown: Any) -> dict[str, Any] | _Leaf:
    """The facts with each value replaced by how it is shown and a digest of it."""
    if isinstance(facts, Mapping) and isinstance(shown, Mapping):
        return {key: _leaves(value, shown[key]) for key, value in facts.items()}
    return [shown if isinstance(shown, str) else show(shown), _digest(facts)]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()[:16]
