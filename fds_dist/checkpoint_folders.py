"""Checkpoints that are folders of large files: never written twice, known by the checksums of their files.

Nothing protects a large file against damage, and a folder written over and left half-way would be a mixture: so each
checkpoint has a folder of its own, `KIND-N`, which counts from the moment that a small file names it and its checksums.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from fds_dist.distributed.mesh import Ranks
from fds_dist.faults import Fault, UserError


def newest_first(parent: Path, kind: str) -> list[Path]:
    """The folders of this kind in `parent`."""
    named = {path: re.fullmatch(rf"{kind}-(\d+)", path.name) for path in parent.glob(f"{kind}-*") if path.is_dir()}
    numbers = {path: int(match[1]) for path, match in named.items() if match}
    return sorted(numbers, key=numbers.__getitem__, reverse=True)


def fresh_folder(parent: Path, kind: str) -> Path:
    """A folder's path in `parent` that no checkpoint had before; on the first rank."""
    newest = next((int(path.name.rpartition("-")[2]) for path in newest_first(parent, kind)), 0)
    return parent / f"{kind}-{newest + 1}"


def remove_folders(parent: Path, kind: str, spared: Collection[Path] = ()) -> None:
    """Removes the checkpoints of this kind in `parent` but for those spared; on the first rank."""
    for folder in newest_first(parent, kind):
        if folder not in spared:
            shutil.rmtree(folder, ignore_errors=True)


def digests(folder: Path, ranks: Ranks) -> dict[str, str]:
    """The SHA-256 of each file in `folder` by its path there, on every rank; each computes a part of them.

    Raises:
        UserError: a rank does not see the files that the first one sees.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = ranks.broadcast_object(names)
    found = _digests(folder, names, ranks)
    if missing := [name for name in names if name not in found]:
        problem = f"{folder} is not the same folder on all ranks ({', '.join(missing)})"
        raise UserError(Fault("RUN_DIR", problem, "a file system that all ranks share"))
    return found


def changed_files(folder: Path, expected: Mapping[str, str], ranks: Ranks) -> list[str]:
    """The files that are missing, or not as `digests` saw them; the same on every rank."""
    found = _digests(folder, sorted(expected), ranks)
    return [name for name, digest in expected.items() if found.get(name) != digest]


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        found = hashlib.sha256()
        while chunk := file.read(1 << 20):  # `hashlib.file_digest` came with Python 3.11
            found.update(chunk)
    return found.hexdigest()


def _digests(folder: Path, names: Iterable[str], ranks: Ranks) -> dict[str, str]:
    mine = {
        name: digest(folder / name) for name in list(names)[ranks.rank :: ranks.world_size] if (folder / name).is_file()
    }
    return {name: found for part in ranks.gather_objects(mine) for name, found in part.items()}
