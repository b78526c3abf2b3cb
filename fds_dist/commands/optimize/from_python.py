"""What a caller in Python hands to `optimize` beside the config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fds_dist.build import ModelBuilder
from fds_dist.common.faults import Fault
from fds_dist.common.kinds import wrong_kind
from fds_dist.config import Draft
from fds_dist.tasks.base import Task
from fds_dist.tracking.callbacks import Callback
from fds_dist.tracking.trackers import Tracker

LAMBDA = "<lambda>"


@dataclass(frozen=True)
class FromPython:
    """The objects that no config can name."""

    task: Task | None = None
    model: nn.Module | ModelBuilder | None = None
    callbacks: Sequence[Callback] = ()
    trackers: Sequence[Tracker] = ()

    @property
    def replaces_config(self) -> bool:
        """Whether the config alone would not give this run."""
        return self.task is not None or self.model is not None

    @property
    def model_name(self) -> str | None:
        """The name of the model's class or function; None where there is none."""
        if self.model is None or isinstance(self.model, nn.Module):
            return self.model and type(self.model).__name__
        name = getattr(self.model, "__name__", type(self.model).__name__)
        return None if name == LAMBDA else name

    def prepare(self, draft: Draft) -> Draft:
        """The draft with a fault for each callback and tracker that is none."""
        faults = [*_faults("callbacks", self.callbacks, Callback), *_faults("trackers", self.trackers, Tracker)]
        return replace(draft, faults=[*draft.faults, *faults])


def _faults(key: str, objects: Any, kind: type) -> list[Fault]:
    expected = f"an object of a subclass of fds_dist.{kind.__name__}"
    if isinstance(objects, str) or not isinstance(objects, Sequence):
        return [Fault(key, wrong_kind(objects), f"a list of such: {expected}")]
    return [
        Fault(f"{key}[{place}]", wrong_kind(each), expected)
        for place, each in enumerate(objects)
        if not isinstance(each, kind)
    ]
