"""Every piece of code in the README and in the documentation works as it stands there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from launching import start_ranks
from pages import PAGES, ROOT, Piece, pieces

from fds_dist.commands.command_line import parse
from fds_dist.config import load_config
from fds_dist.config.yaml_text import parse_yaml

BASE = {"task": {"name": "digits"}, "model": {"name": "lenet"}, "hyperparameters": {"lr": {}}}
"""What a piece of a config is a piece of."""

IDS = [str(page.relative_to(ROOT)) for page in PAGES]
LANGUAGES = {"python", "yaml", "bash", "text"}
"""text: no code, such as what a command prints."""


def blocks(page: Path, language: str) -> list[Piece]:
    return [piece for piece in pieces(page) if piece.language == language]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_each_piece_has_a_language_that_is_tested(page: Path) -> None:
    fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.M)
    assert set(fences[::2]) <= LANGUAGES
    assert len(pieces(page)) == len(fences) // 2


def parts(page: Path) -> list[tuple[str, list[Piece]]]:
    """The Python of a page as one program, and one more for each library that its pieces need."""
    by_library: dict[str, list[Piece]] = {}
    for piece in blocks(page, "python"):
        by_library.setdefault(piece.notes.get("needs", "").strip(), []).append(piece)
    own = by_library.get("", [])
    rest = {library: [*own[:1], *needing] for library, needing in by_library.items() if library}
    return [(library, code) for library, code in {"": own, **rest}.items() if code]


def programs() -> list[Any]:
    """The programs of all pages; of those that begin alike the beginning runs once, and the rest of each knows no other
    page's names."""
    found: dict[tuple[str, str], dict[Path, str]] = {}
    for page in PAGES:
        for library, (first, *rest) in parts(page):
            found.setdefault((library, first.program), {})[page] = "\n".join(piece.program for piece in rest)
    return [
        pytest.param(
            list(rests),
            library,
            "\n".join([first, *(f"exec({rest!r}, {{**globals()}})" for rest in rests.values())]),
            id=" ".join([*(page.name for page in rests), library]).strip(),
        )
        for (library, first), rests in found.items()
    ]


@pytest.mark.parametrize(("pages", "library", "program"), programs())
def test_the_python_of_a_page_runs(pages: list[Path], library: str, program: str, tmp_path: Path) -> None:
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    for page in pages:
        write_files(page, tmp_path)
    (ended,) = start_ranks(["-c", program], 1, [tmp_path])
    assert ended.status == 0, ended.err[-3000:]


def write_files(page: Path, folder: Path) -> None:
    """The pieces of a page that are files."""
    for piece in pieces(page):
        if "file" in piece.notes:
            (folder / piece.notes["file"].strip()).write_text(piece.code, encoding="utf-8")


def merged(base: Any, part: Any) -> Any:
    if isinstance(base, dict) and isinstance(part, dict):
        return {**base, **{key: merged(base.get(key), value) for key, value in part.items()}}
    return part


CONFIGS = [
    pytest.param(piece, id=f"{name} {index}")
    for page, name in zip(PAGES, IDS, strict=True)
    for index, piece in enumerate(blocks(page, "yaml"))
]


@pytest.mark.parametrize("piece", CONFIGS)
def test_a_config_is_taken(piece: Piece) -> None:
    content, faults = parse_yaml(piece.code)
    assert not faults
    load_config(merged(BASE, content))


LINES = [
    pytest.param(page, line, id=f"{name}: {line}"[:100])
    for page, name in zip(PAGES, IDS, strict=True)
    for piece in blocks(page, "bash")
    for line in piece.code.splitlines()
    if line.strip()
]
INSTALLERS = ("pip", "git", "cd")
"""What is not ours to try."""


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_line_is_taken(page: Path, line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words or words[0] in INSTALLERS:
        return
    if words[0] == "fds-dist":
        parse(words[1:])
        files = {piece.notes["file"].strip() for piece in pieces(page) if "file" in piece.notes}
        for word in words[2:]:
            if word.startswith("configs/"):
                assert (ROOT / word).is_file(), word
            elif word.endswith((".yaml", ".py")) and "/" not in word:
                assert word in files or word in ("my.yaml", "schedule.py"), word
        return
    scripts = [word for word in words if (ROOT / word).is_file()]
    assert scripts, f"{words[0]} is not tested: name a script of the repository, or fds-dist"


def test_ones_own_task_takes_under_25_lines() -> None:
    (task, *_) = blocks(ROOT / "README.md", "python")
    assert "task_from_datasets" in task.code
    assert len(task.code.strip().splitlines()) < 25


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def test_the_site_lists_each_page() -> None:
    listed = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(page.name for page in PAGES if page.parent == ROOT / "docs")
