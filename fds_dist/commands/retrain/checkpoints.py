"""Files of a retraining: weights for other programs, and the state from which to continue.

All are safetensors files: nothing is unpickled. A file is written under a temporary name and then renamed, so it is
either whole or absent. The state is one file that includes the weights: no crash can leave the weights of one epoch
beside the optimizer state of another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import parse_json, write_atomic
from fds_dist.common.records import Count


def _within(name: str) -> str:
    """The path of a file in a folder; one that leads out of it is none."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("it is no file of the folder")
    return name


@dataclass(frozen=True)
class SeedFolder:
    """The files of one seed."""

    path: Path

    @property
    def state(self) -> Path:
        """What the engine needs to continue; its content is opaque to the trainer."""
        return self.path / "state.safetensors"

    @property
    def last(self) -> Path:
        """Weights and buffers after the last epoch, by their names in the network."""
        return self.path / "last.safetensors"

    @property
    def last_trained(self) -> Path:
        """Where the weights are averaged: the trained ones beside those of `last`, which are their average."""
        return self.path / "last_trained.safetensors"

    @property
    def best(self) -> Path:
        """Weights and buffers after the epoch with the best figure on held-out validation data; without such data those
        of `last`, so that a program that reads this file finds it."""
        return self.path / "best.safetensors"

    @property
    def history(self) -> Path:
        """One line per epoch."""
        return self.path / "history.jsonl"


FILES = "deepspeed"
"""The key under which the state names DeepSpeed's files, and the kind of their folders. DeepSpeed writes a file or two
per rank with `torch.save`."""


@dataclass(frozen=True)
class Written:
    """What the state says of DeepSpeed's files."""

    folder: Annotated[str, Field(pattern=rf"^{FILES}-[0-9]+$")]
    """Beside the state."""
    world_size: Count
    files: dict[Annotated[str, AfterValidator(_within)], str]
    """Path in the folder → SHA-256."""


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes named tensors to a safetensors file, atomically. `safetensors.torch.load_file` reads it."""
    write_atomic(path, save(dict(weights), {"format": "pt"}))


def write_state(path: Path, tensors: Mapping[str, Tensor], progress: dict[str, Any]) -> None:
    """Writes `tensors`, `progress` (JSON values) and a checksum over both, atomically."""
    text = json.dumps(progress)
    write_atomic(path, save(dict(tensors), {"progress": text, "sha256": _digest(tensors, text)}))


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The tensors and the progress that `write_state` wrote; None if the file does not exist.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if metadata["sha256"] == _digest(tensors, metadata["progress"]):
            progress = parse_json(metadata["progress"])
            if isinstance(progress, dict):
                return tensors, progress
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    raise UserError(Fault("", f"{path} is damaged", "restart=true, to train anew"))


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # without a copy, which threads would wait for
    return digest.hexdigest()
