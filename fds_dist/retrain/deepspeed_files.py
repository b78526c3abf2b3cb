"""The folder of a DeepSpeed checkpoint: never written twice, known by the checksums of its files.

DeepSpeed writes a file or two per rank with `torch.save`. Nothing protects those against damage, and a folder written
over and left half-way would be a mixture: so each checkpoint has a folder of its own, which counts from the moment that
the state file names it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from fds_dist.distributed.mesh import Ranks
from fds_dist.faults import Fault, UserError

_NAME = re.compile(r"deepspeed-(\d+)")


def fresh_folder(parent: Path) -> Path:
    """A folder's path in `parent` that no checkpoint had before; on the first rank."""
    numbers = [int(_NAME.fullmatch(folder.name)[1]) for folder in _folders(parent)]  # type: ignore[index]
    return parent / f"deepspeed-{max(numbers, default=0) + 1}"


def remove_others(folder: Path) -> None:
    """Removes all other checkpoints beside `folder`; on the first rank."""
    for other in _folders(folder.parent):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


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
        raise UserError(Fault("RUN_DIR", problem, "a file system that all ranks share, for engine=deepspeed"))
    return found


def changed_files(folder: Path, expected: Mapping[str, str], ranks: Ranks) -> list[str]:
    """The files that are missing, or not as `digests` saw them; the same on every rank."""
    found = _digests(folder, sorted(expected), ranks)
    return [name for name, digest in expected.items() if found.get(name) != digest]


def _digests(folder: Path, names: Iterable[str], ranks: Ranks) -> dict[str, str]:
    mine = {
        name: _digest(folder / name)
        for name in list(names)[ranks.rank :: ranks.world_size]
        if (folder / name).is_file()
    }
    return {name: digest for part in ranks.gather_objects(mine) for name, digest in part.items()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):  # `hashlib.file_digest` came with Python 3.11
            digest.update(chunk)
    return digest.hexdigest()


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
