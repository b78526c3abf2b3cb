"""A task that sends signals to its own process in the middle of an outer step, as a scheduler would at that moment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from own_tasks import Blobs

RANK = os.environ.get("RANK", "0")


class Signalled(Blobs):
    """Reads from `plan`, where that file is, who sends what and when; see `write_plan`."""

    def __init__(self, plan: str) -> None:
        super().__init__()
        self.plan = Path(plan)

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[Any]:
        plan = json.loads(self.plan.read_text()) if self.plan.exists() else {}
        signals = plan.get("signals", {}).get(RANK, [])
        for index, batch in enumerate(super().train_batches(outer_step, epoch)):
            if signals and [outer_step, epoch, index] == plan["moment"]:
                for number, pause in signals:
                    os.kill(os.getpid(), number)
                    time.sleep(pause)
            yield batch


def signalled(plan: str) -> Signalled:
    return Signalled(plan)


def write_plan(path: Path, moment: tuple[int, int, int], **signals: Sequence[tuple[int, float]]) -> None:
    """Lets ranks send signals to themselves.

    Args:
        moment: (outer step, epoch, batch), before whose step they do so.
        signals: rank0=[(SIGTERM, seconds to wait afterwards), ...], ...
    """
    by_rank = {
        name.removeprefix("rank"): [(int(number), pause) for number, pause in each] for name, each in signals.items()
    }
    path.write_text(json.dumps({"moment": moment, "signals": by_rank}))
