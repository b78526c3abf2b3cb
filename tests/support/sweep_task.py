"""A task that writes down, on every rank, what a job of a sweep gave it, and that fails where it is told to."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from own_tasks import Blobs, raises


class Recorded(Blobs):
    """Turn 3: rank 1 alone fails in its second epoch. Turn 4: goes on for a minute, for others to stop it."""

    def __init__(self, turn: int) -> None:
        super().__init__()
        self.turn = turn

    def train_batches(self, outer_step: int, epoch: int) -> Any:
        if epoch and self.turn == 3 and os.environ.get("RANK") == "1":
            raises()
        if epoch and self.turn == 4:
            time.sleep(60)
        return super().train_batches(outer_step, epoch)


def recorded(folder: str, turn: int) -> Recorded:
    """Writes `FOLDER/TURN-RANK.json`: its own argument, and the values as they stood on this rank's command line."""
    content = {"turn": turn, "overrides": [argument for argument in sys.argv if "=" in argument]}
    path = Path(folder) / f"{turn}-{os.environ.get('RANK', '0')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return Recorded(turn)
