"""Checkpoints: small JSON files of the outer loop, and folders of large files.

A small file carries its checksum. It is written under a temporary name and then renamed, so it is whole or absent.
A large checkpoint has its own folder, `KIND-N`, which is never written twice: an interrupted second write would
leave a mixture. The folder counts as soon as a small file names it, with the checksums of its files.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import VISIBLE_SECONDS, digest, is_visible, make_folder, parse_json, write_text_atomic
from fds_dist.distributed.mesh import Ranks

State = TypeVar("State")

_NAME = re.compile(r"outer_(\d+)\.json")


def sealed(values: Any) -> str:
    """JSON values with their checksum, as text; floats stay exact."""
    text = json.dumps(values)
    return json.dumps({"sha256": _digest(text), "state": text}) + "\n"


def unsealed(content: bytes) -> Any:
    """The JSON values that `sealed` was given.

    Raises:
        ValueError: the content is not what `sealed` wrote.
    """
    try:
        box = parse_json(content)
        if isinstance(box, dict) and _digest(box["state"]) == box["sha256"]:
            return parse_json(box["state"])
    except (KeyError, AttributeError):
        pass
    raise ValueError("its checksum is wrong")


def save_checkpoint(folder: Path, outer_steps_done: int, state: dict[str, Any], keep: int) -> Path:
    """Writes `state` (JSON values), and deletes what is older than the newest `keep` checkpoints that are whole."""
    make_folder(folder, parents=True)
    path = folder / f"outer_{outer_steps_done:04d}.json"
    write_text_atomic(path, sealed(state))
    whole = 0
    for checkpoint in _newest_first(folder):
        if whole < keep:
            whole += _is_whole(checkpoint)
        else:
            _remove(checkpoint)
    return path


def _as_it_is(number: int, state: Any) -> Any:
    return state


def load_checkpoint(
    folder: Path, warn: Callable[[str], None], read: Callable[[int, dict[str, Any]], State] = _as_it_is
) -> State | None:
    """The state of the newest checkpoint in `folder` that is whole; None without one.

    Args:
        warn: gets a line for each damaged one.
        read: makes the result of what `save_checkpoint` was given; a ValueError says what is wrong with that.
    """
    for path in _newest_first(folder):
        try:
            state = unsealed(path.read_bytes())
            if not isinstance(state, dict):
                raise ValueError("it holds no state")
            return read(_number(path), state)
        except (OSError, ValueError) as error:
            problem = error.strerror if isinstance(error, OSError) else error
        warn(f"{path} is damaged ({problem}); using the checkpoint before it")
    return None


def _is_whole(path: Path) -> bool:
    try:
        unsealed(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _remove(path: Path) -> None:
    """Removes an old checkpoint; one that cannot be removed stays."""
    with suppress(OSError):
        path.unlink()


def _newest_first(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("outer_*.json") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("outer_"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def newest_first(parent: Path, kind: str) -> list[Path]:
    """The folders of this kind in `parent`, the highest number first."""
    named = {path: re.fullmatch(rf"{kind}-(\d+)", path.name) for path in parent.glob(f"{kind}-*") if path.is_dir()}
    numbers = {path: int(match[1]) for path, match in named.items() if match}
    return sorted(numbers, key=numbers.__getitem__, reverse=True)


def fresh_folder(parent: Path, kind: str) -> Path:
    """The path of a new folder in `parent`, with the next number that none has had. Called on rank 0."""
    newest = next((int(path.name.rpartition("-")[2]) for path in newest_first(parent, kind)), 0)
    number = _numbers[parent, kind] = max(newest, _numbers.get((parent, kind), 0)) + 1
    return parent / f"{kind}-{number}"


_numbers: dict[tuple[Path, str], int] = {}
"""(parent, kind) → the highest number that this process has given. A folder that was removed never comes back: over a
network file system another host may take the new one for the old one, and cannot write in it."""


def remove_folders(parent: Path, kind: str, spared: Collection[Path] = ()) -> None:
    """Removes the checkpoints of this kind in `parent`, except those in `spared`. Called on rank 0."""
    for folder in newest_first(parent, kind):
        if folder not in spared:
            shutil.rmtree(folder, ignore_errors=True)


def digests(folder: Path, ranks: Ranks) -> dict[str, str]:
    """The SHA-256 of each file in `folder` by its path there, on every rank. Each rank computes a part of them.

    Raises:
        UserError: a rank does not see the files that the others see.
    """
    seen = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = sorted({name for part in ranks.gather_objects(seen) for name in part})  # each sees at least its own
    checksums = _digests(folder, names, ranks)
    if missing := [name for name in names if name not in checksums]:
        problem = f"{folder} is not the same folder on all ranks ({', '.join(missing)})"
        raise UserError(Fault("RUN_DIR", problem, "a file system that all ranks share"))
    return checksums


def changed_files(folder: Path, expected: Mapping[str, str], ranks: Ranks) -> list[str]:
    """The files that are missing or whose checksum is not the `expected` one; the same on every rank.

    A file that rank 0 does not see is missing; for the others the other ranks wait, see `is_visible`.
    """
    seen = ranks.on_first(lambda: [name for name in sorted(expected) if (folder / name).is_file()])
    checksums = _digests(folder, seen, ranks)
    return [name for name, checksum in expected.items() if checksums.get(name) != checksum]


def _digests(folder: Path, names: Iterable[str], ranks: Ranks) -> dict[str, str]:
    names, until = list(names), time.monotonic() + VISIBLE_SECONDS
    unseen = [name for name in names if not is_visible(folder / name, until)]
    checksums = {}
    for name in names[ranks.rank :: ranks.world_size]:
        with suppress(OSError):  # what cannot be read counts as missing
            checksums[name] = digest(folder / name)
    told = ranks.gather_objects((checksums, unseen))
    missing = {name for _, names in told for name in names}
    return {name: checksum for part, _ in told for name, checksum in part.items() if name not in missing}
