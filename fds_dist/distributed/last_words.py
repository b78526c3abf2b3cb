"""Last words: why a rank ends, in the store that all ranks share.

A rank that is lost tells PyTorch's collectives of the other ranks nothing but a closed connection. So a rank that ends
with an error writes its reason into the store first, and the ranks that lose it then tell that reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from torch.distributed.distributed_c10d import Store

Answer = TypeVar("Answer")

LINGER = timedelta(seconds=10)
"""How long a rank that has said its last words leaves the store open for ranks that have not read them."""

PATIENCE = 5.0
"""Seconds after which a store that does not answer counts as gone with the rank that hosts it."""

INTERRUPTED = "it was interrupted"
"""The last words of a rank that a signal has ended."""

LONGEST = 2000
"""Characters of a text that are kept."""


@dataclass(frozen=True)
class Board:
    """The part of the store where the ranks of one run leave their last words."""

    store: Store
    """A part of the shared store that is used for nothing else, the same on all ranks."""
    rank: int
    world_size: int


_board: Board | None = None


def use(board: Board) -> None:
    """From now on, until `leave`, `say` and `heard` use `board`. All ranks of a run call this alike."""
    global _board
    _board = board


def leave(lingers: bool) -> None:
    """Ends the use of the board.

    Args:
        lingers: whether to wait until each other rank has read, or ends too, for `LINGER` at the most. For a rank that
            has said its last words, has left its process groups, so that the others notice, and may have the store.
    """
    global _board
    board, _board = _board, None
    if board is None or not lingers:
        return
    deadline = time.monotonic() + LINGER.total_seconds()
    while not _answer(lambda: all(_is_over(board, rank) for rank in _others(board)), True):
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)


def say(rank: int, text: str) -> None:
    """Leaves one line for the other ranks: why `rank` ends. Nothing happens without a board or without its store.

    An empty text says that the rank has nothing to tell: it has lost another rank itself.
    """
    if (board := _board) is not None:
        _answer(lambda: board.store.set(f"words/{rank}", " ".join(text.split())[:LONGEST]), None)


def heard() -> dict[int, str]:
    """rank → the last words of each other rank that has left some. Empty where the store is gone."""
    if (board := _board) is None:
        return {}
    texts = _answer(lambda: {rank: _read(board, f"words/{rank}") for rank in _others(board)}, {})
    _answer(lambda: board.store.set(f"heard/{board.rank}", ""), None)
    return {rank: text for rank, text in texts.items() if text}


def _others(board: Board) -> list[int]:
    return [rank for rank in range(board.world_size) if rank != board.rank]


def _is_over(board: Board, rank: int) -> bool:
    return board.store.check([f"heard/{rank}"]) or board.store.check([f"words/{rank}"])


def _read(board: Board, key: str) -> str:
    return board.store.get(key).decode() if board.store.check([key]) else ""


def _answer(ask: Callable[[], Answer], otherwise: Answer) -> Answer:
    """What `ask` returns; `otherwise` where the store is gone or silent.

    A store whose process is stopped keeps a caller waiting for ever: a thread asks.
    """
    answers: list[Answer] = []

    def run() -> None:
        try:
            answers.append(ask())
        except RuntimeError:  # the store is gone
            answers.append(otherwise)

    thread = threading.Thread(target=run, name="fds-dist last words", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answers[0] if answers else otherwise
