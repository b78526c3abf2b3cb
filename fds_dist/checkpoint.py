"""Checkpoints of the outer loop: small JSON files with a checksum, written beside the last ones and renamed into place.

A file is either whole or not there; one that was damaged later is recognised by its checksum and passed over.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fds_dist.run_folder import write_text_atomic

_NAME = re.compile(r"outer_(\d+)\.json")


def save_checkpoint(folder: Path, outer_steps_done: int, state: dict[str, Any], keep: int) -> Path:
    """Writes `state` (JSON values; floats are exact) and deletes all but the newest `keep` checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"outer_{outer_steps_done:04d}.json"
    text = json.dumps(state, sort_keys=True)
    write_text_atomic(path, json.dumps({"sha256": _digest(text), "state": text}) + "\n")
    for old in _newest_first(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The state of the newest whole checkpoint in `folder`; None if there is none. `warn` hears of damaged ones."""
    for path in _newest_first(folder):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if _digest(content["state"]) == content["sha256"]:
                return json.loads(content["state"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        warn(f"{path} is damaged; going back to the checkpoint before it")
    return None


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("outer_*.json") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("outer_")), reverse=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
