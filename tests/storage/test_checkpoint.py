"""Checkpoints: the newest whole one wins, whatever happened to those after it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fds_dist.storage.checkpoints import fresh_folder, load_checkpoint, remove_folders, save_checkpoint

STATE = {"values": [0.1 + 0.2, 5e-324, -1e308, math.inf], "best": None, "nested": {"λ": [True, "x"]}}


def load(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    warnings: list[str] = []
    return load_checkpoint(folder, warnings.append), warnings


def save(folder: Path, *steps: int, keep: int = 10) -> None:
    for step in steps:
        save_checkpoint(folder, step, {"step": step, **STATE}, keep)


def test_what_was_saved_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    save(tmp_path / "new" / "checkpoints", 3)
    state, warnings = load(tmp_path / "new" / "checkpoints")
    assert state == {"step": 3, **STATE}
    assert warnings == []


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path: Path) -> None:
    assert load(tmp_path) == load(tmp_path / "missing") == (None, [])


@pytest.mark.parametrize("steps", [(1, 2, 3), (3, 1, 2), (9, 10), (9_999, 10_000)])
def test_the_newest_by_outer_step_wins(tmp_path: Path, steps: tuple[int, ...]) -> None:
    save(tmp_path, *steps)
    state, _ = load(tmp_path)
    assert state is not None
    assert state["step"] == max(steps)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    save(tmp_path, *range(1, 13), keep=keep)
    kept = [json.loads(json.loads(path.read_text())["state"])["step"] for path in sorted(tmp_path.iterdir())]
    assert kept == list(range(13 - keep, 13))


def flip(position: float) -> Callable[[Path], None]:
    """Flips one bit at this share of the file, within the text of the state or of the checksum."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(position * len(content))] ^= 1
        path.write_bytes(bytes(content))

    return damage


def truncate(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return damage


def replace_by(content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(content)

    return damage


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "flipped in the checksum": flip(0.15),
    "flipped in the state": flip(0.6),
    "flipped key": flip(0.02),
    "cut": truncate(0.9),
    "cut early": truncate(0.3),
    "empty": replace_by(b""),
    "zeros": replace_by(bytes(500)),
    "no text": replace_by(b"\xff\xfe{}"),
    "a list": replace_by(b"[1, 2]"),
    "an empty object": replace_by(b"{}"),
    "a state that is no text": replace_by(b'{"sha256": "0", "state": {"step": 3}}'),
    "a folder": as_folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    save(tmp_path, 1, 2, 3)
    damage(tmp_path / "outer_0003.json")
    state, warnings = load(tmp_path)
    assert state is not None
    assert state["step"] == 2
    assert len(warnings) == 1
    assert "outer_0003.json is damaged" in warnings[0]


def test_every_flipped_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "outer_0001.json"
    whole, (saved, _) = path.read_bytes(), load(tmp_path)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x04]) + whole[position + 1 :])
        state, warnings = load(tmp_path)
        assert state == saved if not warnings else state is None, position


def test_where_all_are_damaged_all_are_named(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for path in tmp_path.iterdir():
        path.write_text("")
    state, warnings = load(tmp_path)
    assert state is None
    assert [name in warning for name, warning in zip(("0002", "0001"), warnings, strict=True)] == [True, True]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("outer_best.json", ".outer_0009.json.77.tmp", "notes.txt")]
    for other in others:
        other.write_text("mine")
    save(tmp_path, 1, 2, keep=1)
    state, warnings = load(tmp_path)
    assert state is not None
    assert (state["step"], warnings) == (2, [])
    assert all(other.read_text() == "mine" for other in others)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 2)
    save_checkpoint(tmp_path, 2, {"step": "again"}, keep=2)
    assert load(tmp_path) == ({"step": "again"}, [])


def test_the_folder_of_a_removed_checkpoint_never_comes_back(tmp_path: Path) -> None:
    """Another host may take the new one for the old one."""
    for number in range(1, 4):
        folder = fresh_folder(tmp_path, "inner")
        assert folder == tmp_path / f"inner-{number}"
        folder.mkdir()
        remove_folders(tmp_path, "inner")
        assert not folder.exists()
