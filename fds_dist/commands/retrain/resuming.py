"""Whether the state in a seed's folder is one that this retraining may go on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fds_dist.commands.retrain.records import EpochPart, EpochRecord
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.records import from_values
from fds_dist.common.secrets import hide_secrets
from fds_dist.schedule.schedule import Schedule

DECIDES_THE_DATA = ("task", "model")
"""Sections of the run's config that a retraining depends on beside its settings and the schedule."""

IN_WORDS = ("schedule", "deepspeed", *DECIDES_THE_DATA)
"""What a message calls `another NAME`: the rest it shows by its value."""

CAME_LATER = frozenset(DECIDES_THE_DATA)
"""Names that the states of earlier versions do not have."""

EARLIER = {"hold_out": False}
"""Settings that the states of earlier versions do not have, as those versions trained."""


def digests_of(config: Mapping[str, Any]) -> dict[str, str]:
    """A short name of the content of each section in `DECIDES_THE_DATA`, of a resolved config."""
    sections = {name: json.dumps(hide_secrets(config.get(name)), sort_keys=True) for name in DECIDES_THE_DATA}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in sections.items()}


@dataclass(frozen=True)
class Identity:
    """What defines the retraining of one seed; it must be the same when it is resumed."""

    seed: int
    schedule: Schedule
    """Over all steps of the retraining."""
    steps_per_epoch: int
    settings: RetrainSettings
    data: Mapping[str, str]
    """From `digests_of`; empty where no config says what the data are."""

    @property
    def values(self) -> dict[str, Any]:
        """As JSON values, without secrets."""
        launch = {"seed", "seeds", "restart"}
        settings = {name: value for name, value in self.settings.resolved().items() if name not in launch}
        schedule = json.loads(self.schedule.to_json())
        return {**hide_secrets(settings), **self.data, "horizon": schedule.pop("horizon"), "schedule": schedule}

    def done(self, path: Path, progress: Mapping[str, Any]) -> tuple[list[EpochRecord], EpochPart]:
        """The epochs that are done, and the part of the next one, by the state in the file `path`.

        Raises:
            UserError: the state is of another retraining, or is no such state.
        """
        try:
            state = from_values(_State, dict(progress))
        except ValueError as error:
            raise UserError(Fault("", f"{path} is damaged ({error})", "restart=true, to train anew")) from None
        now, before = self.values, {**EARLIER, **state.identity}
        known = [name for name in now if name in before or name not in CAME_LATER]
        if differing := [name for name in known if before.get(name) != now[name]]:
            had = ", ".join(
                f"another {name}" if name in IN_WORDS else f"{name}={before.get(name)}" for name in differing
            )
            problem = f"{path.parent} holds a retraining with {had}"
            raise UserError(Fault("", problem, "the same settings, or restart=true to train anew"))
        for epoch, record in enumerate(state.records):
            step = min((epoch + 1) * self.steps_per_epoch, self.schedule.horizon)
            if (record.seed, record.epoch, record.step) != (self.seed, epoch, step):
                problem = f"{path} is damaged (seed {record.seed}, epoch {record.epoch}, step {record.step})"
                raise UserError(Fault("", problem, f"seed {self.seed}, epoch {epoch}, step {step}; or restart=true"))
        left = self.schedule.horizon - len(state.records) * self.steps_per_epoch
        if state.part.steps > min(self.steps_per_epoch, max(0, left)) or not (state.records or state.part.steps):
            problem = f"{path} is damaged ({state.part.steps} steps of an epoch after {len(state.records)} whole ones)"
            raise UserError(Fault("", problem, "restart=true, to train anew"))
        return state.records, state.part


@dataclass(frozen=True)
class _State:
    """What the state of one seed says beside its tensors."""

    identity: dict[str, Any]
    records: list[EpochRecord]
    part: EpochPart = field(default_factory=EpochPart)
