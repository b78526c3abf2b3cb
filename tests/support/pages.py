"""The pages that people read, and the pieces of code in them.

A comment before a piece of code says what else the test needs, unseen by the reader:

    <!-- before            code that runs first
    <!-- after             code that runs afterwards, such as what has to hold then
    <!-- file: NAME -->    the piece is the content of that file
    <!-- needs: NAME -->   the piece and those after it run where that library is installed
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BEFORE, _CODE = r"((?:<!--(?:(?!-->).)*-->\s*\n)*)", r"^```(\w+)\n(.*?)^```$"
_AFTER = r"((?:\s*\n<!-- after\n(?:(?!-->).)*-->)*)"
_PIECE = re.compile(_BEFORE + _CODE + _AFTER, re.M | re.S)
_COMMENT = re.compile(r"<!-- (before|after|file|needs):?[ \n](.*?)-->", re.S)


@dataclass(frozen=True)
class Piece:
    """A piece of code on a page."""

    language: str
    code: str
    notes: dict[str, str] = field(default_factory=dict)
    """What the comments around it say: before, after, file, needs."""

    @property
    def program(self) -> str:
        """What the reader sees, with what goes before and after it."""
        return "\n".join([self.notes.get("before", ""), self.code, self.notes.get("after", "")])


def pieces(page: Path) -> list[Piece]:
    """The pieces of code of a page, in order."""
    found = []
    for comments, language, code, after in _PIECE.findall(page.read_text(encoding="utf-8")):
        notes = {kind: text.rstrip(" ") for kind, text in _COMMENT.findall(comments + after)}
        found.append(Piece(language, code, notes))
    return found
