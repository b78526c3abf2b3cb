"""Checkpoints within an outer step: when they are written, which ones count, and from which one a run goes on.

A checkpoint is a folder that counts once its manifest is there, which is written last. What its other files hold says
`fds_dist.inner.checkpoint_files`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from fds_dist.common.files import VISIBLE_SECONDS, digest, is_visible
from fds_dist.common.interruptions import asked_to_end
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.checkpoint_files import (
    MANIFEST,
    Manifest,
    Part,
    read_manifest,
    restored,
    tensors_to_write,
    write_manifest,
)
from fds_dist.inner.meetings import Meetings
from fds_dist.inner.run import InnerState, Tangents
from fds_dist.storage.checkpoints import fresh_folder, newest_first, remove_folders

KIND = "inner"


@dataclass
class InnerCheckpoints:
    """The `RunCheckpointer` of one inner run.

    Only ranks that share a file system can keep anything; where they do not, or the disk is full, that is noted and the
    run goes on. Replicas keep nothing: they end at steps of their own, and so cannot meet within an outer step.
    """

    folder: Path
    """Holds the folders of the checkpoints."""
    run: Mapping[str, Any]
    """What decides the inner run, as JSON values; a checkpoint of another run is passed over. A key that is null
    counts as absent: versions differ in the keys that they have, and null leaves a key's choice to the program."""
    horizon: int
    ranks: Ranks
    seconds: float
    """Between two checkpoints."""
    count: int
    """How many of the latest stay."""
    meeting: int
    """Steps from one comparison of the ranks to the next; see `Meetings`."""
    note: Callable[[str], None]
    """Hears, on every rank, what a person should know."""
    grace: float = 0.0
    """Seconds in which the ranks meet, to save a checkpoint and to end, after a signal has asked any of them to end."""

    def __post_init__(self) -> None:
        self._saved = time.monotonic()
        self._meetings = Meetings(self.ranks, self.horizon, self.meeting, self.grace)
        self._possible = self.ranks.shape.replica == 1

    def restore(self, state: InnerState, tangents: Tangents) -> tuple[InnerState, Tangents]:
        """See `RunCheckpointer`; the state is as it was, to the last bit."""
        if not self._possible:
            return state, tangents
        candidates, damaged = self.ranks.on_first(self._candidates)
        for line in damaged:
            self.note(line)
        for folder, manifest in candidates:
            result = restored(folder, manifest, self.ranks, state, tangents)
            if not isinstance(result, str):
                self.note(f"goes on from inner step {manifest.step} of {self.horizon}")
                return result
            self.note(f"{folder} is damaged ({result}) and is passed over")
        return state, tangents

    def keep(self, state: InnerState, tangents: Tangents) -> None:
        """See `RunCheckpointer`.

        Raises:
            KeyboardInterrupt: on all ranks of the inner run, after a checkpoint, where any of them is asked to end.
        """
        if not self._possible or state.step >= self.horizon:
            return
        is_due = time.monotonic() - self._saved >= self.seconds
        answers = self._meetings.ask(state.step, (is_due, asked_to_end()))
        if answers is not None and any(answers):
            self._save(state, tangents)
            if answers[1]:
                self.note(f"{'saved' if self._possible else 'ends'} at inner step {state.step} of {self.horizon}")
                raise KeyboardInterrupt

    def _save(self, state: InnerState, tangents: Tangents) -> None:
        folder = self.ranks.on_first(lambda: fresh_folder(self.folder, KIND))
        path = folder / f"rank-{self.ranks.rank}.safetensors"
        problem, described = "", None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors_to_write(self.ranks, state, tangents), path)
            start = self.ranks.data.columns(len(state.weights)).start
            described = Part(digest(path), start, list(tangents.elements))
        except (OSError, SafetensorError) as error:
            problem = f"{path}: {error}"
        told = self.ranks.gather_objects((path.name, described, problem))
        problem = self.ranks.on_first(lambda: self._commit(folder, state.step, told))
        if problem:
            self._possible = False
            self.note(f"no more checkpoints within this outer step: {problem}")
        self._saved = time.monotonic()

    def _commit(self, folder: Path, step: int, told: Sequence[tuple[str, Part | None, str]]) -> str:
        """On the first rank: lets the checkpoint count and removes older ones; returns what is in the way."""
        problems = [problem for _, _, problem in told if problem]
        until = time.monotonic() + VISIBLE_SECONDS
        problems += [
            f"{folder} is not one folder for all ranks" for name, _, _ in told if not is_visible(folder / name, until)
        ]
        files = {name: described for name, described, _ in told if described}
        try:
            if not problems:
                write_manifest(folder, Manifest(dict(self.run), self.horizon, step, files))
        except OSError as error:
            problems.append(str(error))
        if problems:
            shutil.rmtree(folder, ignore_errors=True)
            return problems[0]
        remove_folders(self.folder, KIND, [other for other, _ in self._candidates()[0]][: self.count])
        return ""

    def _candidates(self) -> tuple[list[tuple[Path, Manifest]], list[str]]:
        """This run's checkpoints, newest first, with their manifests; and a line for each that is damaged."""
        candidates, damaged = list[tuple[Path, Manifest]](), list[str]()
        for folder in newest_first(self.folder, KIND):
            try:
                manifest = read_manifest(folder)
            except FileNotFoundError:
                continue  # left half-way
            except (OSError, ValueError) as error:
                damaged.append(f"{folder} is damaged ({MANIFEST}: {error}) and is passed over")
                continue
            if manifest.horizon == self.horizon and _is_same(manifest.run, self.run):
                candidates.append((folder, manifest))
        return candidates, damaged


CAME_LATER = {"accumulate": 1, "size": 1, "shape": "constant", "precision": "ieee"}
CAME_LATER |= {"compile": "auto", "cuda_graph": "auto"}
"""Keys of the config that earlier checkpoints do not have → the value that their runs had, or one that computes the
same (to rounding, where steps are compiled from there on)."""


def _is_same(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether both describe the same inner run: the order of hyperparameters and groups is that of λ."""
    return _set_keys(earlier) == _set_keys(now) and _orders(earlier) == _orders(now)


def _orders(run: Mapping[str, Any]) -> list[list[str]]:
    return [list(run.get("hyperparameters", {})), list(run.get("inner", {}).get("groups") or {})]


def _set_keys(values: Any) -> Any:
    """JSON values without the keys that are null or have the value of `CAME_LATER`, at any depth."""
    if isinstance(values, dict):
        is_set = {key: value for key, value in values.items() if value is not None and CAME_LATER.get(key) != value}
        return {key: _set_keys(value) for key, value in is_set.items()}
    return [_set_keys(value) for value in values] if isinstance(values, list) else values
