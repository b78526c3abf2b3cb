"""Checkpoints within an outer step that were changed on the disk: named, passed over, and the one before is used."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import DEEP, Damage, bit_flips, content, cut, folder_instead, gone
from problems import ONE_RANK
from safetensors.torch import load_file, save_file

from fds_dist.inner.checkpoints import InnerCheckpoints
from fds_dist.inner.run import InnerState, Tangents
from fds_dist.storage.checkpoints import sealed, unsealed

D, K, HORIZON = 5, 3, 9
RUN = {"seed": 0, "hyperparameters": {"lr": {"buckets": 2}, "momentum": {"buckets": 1}}, "inner": {"groups": None}}


def state_at(step: int) -> tuple[InnerState, Tangents]:
    """A state whose every number tells its step: vectors, a single number, a running statistic and a count."""
    optimizer = {"velocity": torch.full((D,), 1.0 + step), "count": torch.tensor(float(step))}
    buffers = {"mean": torch.full((2, 2), 2.0 + step), "seen": torch.tensor(step)}
    rows = {"velocity": torch.full((K, D), 3.0 + step), "count": torch.full((K,), 4.0 + step)}
    tangents = Tangents((0, 2, 1), torch.full((K, D), 5.0 + step), rows, {"mean": torch.full((K, 2, 2), 6.0 + step)})
    return InnerState(step, torch.full((D,), 7.0 + step), optimizer, buffers), tangents


def keeper(folder: Path, notes: list[str], run: dict[str, Any] = RUN, count: int = 2) -> InnerCheckpoints:
    return InnerCheckpoints(folder, run, HORIZON, ONE_RANK, 0.0, count, meeting=1, note=notes.append)


def write(folder: Path, *steps: int, count: int = 2) -> None:
    with keeper(folder, [], count=count) as keeping:
        for step in steps:
            keeping.keep(*state_at(step))


def restored(folder: Path, run: dict[str, Any] = RUN) -> tuple[int, list[str]]:
    """The step that is gone on from (0: none), whose numbers are those that were written; and the notes."""
    notes = list[str]()
    state, tangents = keeper(folder, notes, run).restore(*state_at(0))
    assert repr((state, tangents)) == repr(state_at(state.step))
    return state.step, notes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With `inner-1` of step 4 and `inner-2` of step 5."""
    write(tmp_path, 4, 5)
    assert restored(tmp_path) == (5, ["goes on from inner step 5 of 9"])
    return tmp_path


def test_each_of_a_hundred_flipped_bits_is_named_and_the_one_before_is_used(folder: Path) -> None:
    files = [folder / "inner-2" / name for name in ("manifest.json", "rank-0.safetensors")]
    counted = 0
    for file in files:
        whole = file.read_bytes()
        for damage in bit_flips(len(whole), 50):
            damage(file)
            step, notes = restored(folder)
            assert step == 4 and len(notes) == 2, notes
            assert notes[0].startswith(f"{folder / 'inner-2'} is damaged (") and file.name in notes[0]
            file.write_bytes(whole)
            counted += 1
    assert counted == 100
    assert restored(folder)[0] == 5


@pytest.mark.parametrize("name", ["manifest.json", "rank-0.safetensors"])
@pytest.mark.parametrize(
    "damage",
    [cut(0.9), cut(0.2), content(b""), content(bytes(400)), content(DEEP), content(b"\xff" * 8), folder_instead],
    ids=["cut", "cut early", "empty", "zeros", "nested", "absurd header", "a folder"],
)
def test_other_damage_is_named_and_the_one_before_is_used(folder: Path, name: str, damage: Damage) -> None:
    damage(folder / "inner-2" / name)
    step, notes = restored(folder)
    assert (step, len(notes)) == (4, 2)
    assert notes[0].startswith(f"{folder / 'inner-2'} is damaged (") and name in notes[0]


def test_a_file_that_is_gone_is_named_and_a_folder_without_a_manifest_was_never_whole(folder: Path) -> None:
    gone(folder / "inner-2" / "rank-0.safetensors")
    step, notes = restored(folder)
    assert (step, "rank-0.safetensors" in notes[0]) == (4, True)
    gone(folder / "inner-2" / "manifest.json")
    assert restored(folder) == (4, ["goes on from inner step 4 of 9"])


def test_files_of_another_checkpoint_are_not_taken(folder: Path) -> None:
    other = folder / "inner-1" / "rank-0.safetensors"
    (folder / "inner-2" / "rank-0.safetensors").write_bytes(other.read_bytes())
    step, notes = restored(folder)
    assert (step, "rank-0.safetensors" in notes[0]) == (4, True)


def change(folder: Path, mutate: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest of `inner-2` and gives it its right checksum."""
    path = folder / "inner-2" / "manifest.json"
    values = unsealed(path.read_bytes())
    mutate(values)
    path.write_text(sealed(values))


def part(values: dict[str, Any]) -> dict[str, Any]:
    return values["files"]["rank-0.safetensors"]


def renamed(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda values: values.update(files={name: part(values)})


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "no step": lambda values: values.pop("step"),
    "step as text": lambda values: values.update(step="5"),
    "step below 1": lambda values: values.update(step=0),
    "step beyond the horizon": lambda values: values.update(step=HORIZON),
    "a negative horizon": lambda values: values.update(horizon=-9),
    "no run": lambda values: values.pop("run"),
    "run as a list": lambda values: values.update(run=[]),
    "no files": lambda values: values.update(files={}),
    "files as a list": lambda values: values.update(files=[]),
    "a file above the folder": renamed("../inner-1/rank-0.safetensors"),
    "an absolute path": renamed("/etc/hostname"),
    "a name of another kind": renamed("manifest.json"),
    "no checksum": lambda values: part(values).pop("sha256"),
    "a negative start": lambda values: part(values).update(start=-1),
    "a late start": lambda values: part(values).update(start=1),
    "a start as NaN": lambda values: part(values).update(start=math.nan),
    "elements that do not cover λ": lambda values: part(values).update(elements=[0, 1, 3]),
    "too few elements": lambda values: part(values).update(elements=[0, 1]),
    "too many elements": lambda values: part(values).update(elements=[0, 1, 2, 3]),
    "a negative element": lambda values: part(values).update(elements=[0, 1, -2]),
    "elements as text": lambda values: part(values).update(elements="012"),
}


@pytest.mark.parametrize("mutate", WRONG.values(), ids=WRONG.keys())
def test_a_manifest_of_wrong_content_is_named_though_its_checksum_is_right(
    folder: Path, mutate: Callable[[dict[str, Any]], object]
) -> None:
    change(folder, mutate)
    step, notes = restored(folder)
    assert (step, len(notes)) == (4, 2)
    assert notes[0].startswith(f"{folder / 'inner-2'} is damaged (")


Tensors = dict[str, torch.Tensor]
WRONG_TENSORS: dict[str, Callable[[Tensors], object]] = {
    "no weights": lambda tensors: tensors.pop("weights"),
    "no tangents": lambda tensors: tensors.pop("tangents.weights"),
    "no moment": lambda tensors: tensors.pop("optimizer.0"),
    "no buffer": lambda tensors: tensors.pop("buffers.mean"),
    "too few weights": lambda tensors: tensors.update({"weights": torch.zeros(D - 1)}),
    "too many weights": lambda tensors: tensors.update({"weights": torch.zeros(D + 1)}),
    "weights as a matrix": lambda tensors: tensors.update({"weights": torch.zeros(D, 1)}),
    "too few columns": lambda tensors: tensors.update({"tangents.weights": torch.zeros(K, D - 1)}),
    "too few rows": lambda tensors: tensors.update({"tangents.weights": torch.zeros(K - 1, D)}),
    "tangents as one number": lambda tensors: tensors.update({"tangents.weights": torch.tensor(1.0)}),
    "another dtype": lambda tensors: tensors.update({"weights": torch.zeros(D, dtype=torch.float64)}),
    "a count as a float": lambda tensors: tensors.update({"buffers.seen": torch.tensor(5.0)}),
    "a moment as one number": lambda tensors: tensors.update({"optimizer.0": torch.tensor(1.0)}),
}


def resealed(folder: Path) -> None:
    """Gives the manifest the checksum that the file has now."""
    checksum = hashlib.sha256((folder / "inner-2" / "rank-0.safetensors").read_bytes()).hexdigest()
    change(folder, lambda values: part(values).update(sha256=checksum))


@pytest.mark.parametrize("mutate", WRONG_TENSORS.values(), ids=WRONG_TENSORS.keys())
def test_tensors_that_do_not_fit_are_named_though_their_checksum_is_right(
    folder: Path, mutate: Callable[[Tensors], object]
) -> None:
    file = folder / "inner-2" / "rank-0.safetensors"
    tensors = load_file(file)
    mutate(tensors)
    save_file(tensors, file)
    resealed(folder)
    step, notes = restored(folder)
    assert (step, len(notes)) == (4, 2)
    assert notes[0].startswith(f"{folder / 'inner-2'} is damaged (")


HEADERS = {
    "absurd": struct.pack("<Q", 2**62) + b"{}",
    "longer than the file": struct.pack("<Q", 10_000) + b"{}",
    "nested": struct.pack("<Q", len(DEEP)) + DEEP,
    "an absurd shape": (header := json.dumps({"weights": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}))
    and struct.pack("<Q", len(header)) + header.encode() + bytes(4),
    "nothing": struct.pack("<Q", 2) + b"{}",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_headers_that_promise_too_much_are_named_though_their_checksum_is_right(folder: Path, header: bytes) -> None:
    (folder / "inner-2" / "rank-0.safetensors").write_bytes(header)
    resealed(folder)
    step, notes = restored(folder)
    assert (step, len(notes)) == (4, 2)
    assert notes[0].startswith(f"{folder / 'inner-2'} is damaged (")


def test_another_order_of_hyperparameters_or_groups_is_another_run(folder: Path) -> None:
    """The rows of the tangents are numbered in that order."""
    turned = {**RUN, "hyperparameters": dict(reversed(RUN["hyperparameters"].items()))}
    assert turned == RUN
    assert restored(folder, turned) == (0, [])


def test_a_damaged_manifest_does_not_push_out_a_whole_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 3, 4)
    content(b"{}")(tmp_path / "inner-2" / "manifest.json")
    write(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner-1", "inner-3"]
