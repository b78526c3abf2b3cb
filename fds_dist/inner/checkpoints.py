"""Checkpoints within an outer step: when they are written, which ones count, and from which one a run goes on.

A checkpoint is a folder that counts once its manifest is there, which is written last. What its other files hold says
`fds_dist.inner.checkpoint_files`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from fds_dist.common.files import VISIBLE_SECONDS, is_visible
from fds_dist.common.interruptions import asked_to_end
from fds_dist.common.secrets import hide_secrets
from fds_dist.distributed.endings import end_together
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.checkpoint_files import (
    MANIFEST,
    Manifest,
    Target,
    empty_like,
    fill,
    read_manifest,
    state_targets,
    tangent_targets,
    tensors_to_write,
    write_manifest,
)
from fds_dist.inner.checkpoint_writer import CheckpointWrite, CheckpointWriter, Written
from fds_dist.inner.meetings import Meetings
from fds_dist.inner.run import InnerState, Tangents
from fds_dist.storage.checkpoints import fresh_folder, newest_first, remove_folders

KIND = "inner"

Value = TypeVar("Value")


def kind_of(replica: int, replicas: int) -> str:
    """The kind of the folders of one replica's checkpoints: each replica has its own, and goes on from its newest."""
    return KIND if replicas == 1 else f"{KIND}-r{replica}"


@dataclass
class InnerCheckpoints:
    """The `RunCheckpointer` of one inner run.

    Only ranks that share a file system can keep anything; where they do not, or the disk is full, that is noted and the
    run goes on. Training stops only while tensors are copied to host memory: a thread writes the copies, one checkpoint
    at a time, and the checkpoint counts when the ranks meet after all have written.
    """

    folder: Path
    """Holds the folders of the checkpoints."""
    run: Mapping[str, Any]
    """What decides the inner run, as JSON values; a checkpoint of another run is passed over. A key that is null
    counts as absent: versions differ in the keys that they have, and null leaves a key's choice to the program."""
    horizon: int
    """Steps of the run, there and back in reverse mode."""
    ranks: Ranks
    """Of the inner run."""
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
    kind: str = KIND
    """Of its folders."""
    remark: str = ""
    """What follows the number of steps in notes: ", there and back"."""

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._meetings = Meetings(self.ranks, self.horizon, self.meeting, self.grace)
        self._possible = True
        self._writer = CheckpointWriter()
        self._writing: CheckpointWrite | None = None

    def __enter__(self) -> InnerCheckpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """What is being written counts where all ranks come here alike."""
        if error is None or self.ranks.world_size == 1:
            self._end_write()
        self._writer.close()

    def restore(self, state: InnerState, tangents: Tangents) -> tuple[InnerState, Tangents]:
        """See `RunCheckpointer`; the state is as it was, to the last bit."""

        def plan(step: int) -> tuple[tuple[InnerState, Tangents], list[Target]]:
            filled = empty_like(state, step)
            return (filled, tangents), [*state_targets(filled), *tangent_targets(tangents)]

        return self.restore_planned(len(state.weights), plan) or (state, tangents)

    def restore_planned(self, width: int, plan: Callable[[int], tuple[Value, Sequence[Target]]]) -> Value | None:
        """See `RunCheckpointer`."""
        candidates, damaged = self.ranks.on_first(self._candidates)
        for line in damaged:
            self.note(line)
        for folder, manifest in candidates:
            value, targets = plan(manifest.step)
            problem = fill(folder, manifest, self.ranks, width, targets)
            if not problem:
                self.note(f"goes on from {self._at(manifest.step)}")
                return value
            self.note(f"{folder} is damaged ({problem}) and is passed over")
        return None

    def keep(self, state: InnerState, tangents: Tangents) -> None:
        """See `RunCheckpointer`."""
        tensors = partial(tensors_to_write, self.ranks, state, tangents)
        self.keep_tensors(state.step, len(state.weights), tensors, tangents.elements)

    def keep_tensors(
        self, step: int, width: int, tensors: Callable[[], Mapping[str, Tensor]], elements: Sequence[int] = ()
    ) -> None:
        """See `RunCheckpointer`."""
        if step >= self.horizon:
            return
        is_due = time.monotonic() - self._began >= self.seconds
        is_busy = self._writing is not None and not self._writing.file.done()
        answers = self._meetings.ask(step, (is_due, asked_to_end(), is_busy))
        if answers is None:
            return
        due, asked, busy = answers
        if due or asked or not busy:
            self._end_write()
        if (due or asked) and self._possible:
            self._begin_write(step, width, tensors(), elements)
        if asked:
            self._end_write()
            where = f"{'saved' if self._possible else 'ends'} at {self._at(step)}"
            self.note(where)
            end_together(self.ranks, where)

    def _at(self, step: int) -> str:
        return f"inner step {step} of {self.horizon}{self.remark}"

    def _begin_write(self, step: int, width: int, tensors: Mapping[str, Tensor], elements: Sequence[int]) -> None:
        folder = self.ranks.on_first(lambda: fresh_folder(self.folder, self.kind))
        path, start = folder / f"rank-{self.ranks.rank}.safetensors", self.ranks.data.columns(width).start
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        self._writing, self._began = self._writer.begin(path, step, copies, start, elements), time.monotonic()

    def _end_write(self) -> None:
        """Waits for all ranks' files; the checkpoint then counts. Called alike on all ranks."""
        if (write := self._writing) is None:
            return
        self._writing = None
        told = self.ranks.gather_objects(write.file.result())
        problem = self.ranks.on_first(lambda: self._commit(write.folder, write.step, told))
        if problem:
            self._possible = False
            self.note(f"no more checkpoints within this outer step: {problem}")

    def _commit(self, folder: Path, step: int, told: Sequence[Written]) -> str:
        """On the first rank: lets the checkpoint count and removes older ones; returns what is in the way."""
        until = time.monotonic() + VISIBLE_SECONDS
        problems = [written.problem for written in told if written.problem] or [
            f"{folder} is not one folder for all ranks"
            for written in told
            if not is_visible(folder / written.name, until)
        ]
        files = {written.name: written.part for written in told if written.part}
        try:
            if not problems:
                write_manifest(folder, Manifest(dict(self.run), self.horizon, step, files))
        except OSError as error:
            problems.append(str(error))
        if problems:
            shutil.rmtree(folder, ignore_errors=True)
            return problems[0]
        remove_folders(self.folder, self.kind, [other for other, _ in self._candidates()[0]][: self.count])
        return ""

    def _candidates(self) -> tuple[list[tuple[Path, Manifest]], list[str]]:
        """This run's checkpoints, newest first, with their manifests; and a line for each that is damaged."""
        candidates, damaged = list[tuple[Path, Manifest]](), list[str]()
        for folder in newest_first(self.folder, self.kind):
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
"""Keys of the config that earlier checkpoints do not have → the value that their runs had."""
SAME = ("compile", "cuda_graph")
"""Keys that change how a run is computed and not what, but for rounding."""


def _is_same(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether both describe the same inner run: the order of hyperparameters and groups is that of λ."""
    return _set_keys(hide_secrets(dict(earlier))) == _set_keys(now) and _orders(earlier) == _orders(now)


def _orders(run: Mapping[str, Any]) -> list[list[str]]:
    return [list(run.get("hyperparameters", {})), list(run.get("inner", {}).get("groups") or {})]


def _set_keys(values: Any) -> Any:
    """JSON values without the keys of `SAME`, those that are null and those that have the value of `CAME_LATER`."""
    if isinstance(values, dict):
        told = {key: value for key, value in values.items() if value is not None and key not in SAME}
        return {key: _set_keys(value) for key, value in told.items() if CAME_LATER.get(key) != value}
    return [_set_keys(value) for value in values] if isinstance(values, list) else values
