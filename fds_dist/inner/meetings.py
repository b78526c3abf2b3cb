"""When the ranks of an inner run agree on what to do next: to save a checkpoint, or to end."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fds_dist.distributed.mesh import Ranks

CHANCES = 100
"""How often in a horizon ranks of the `data` axis, which meet at every step anyway, ask each other."""

MEETINGS_IN_GRACE = 4
"""How often the ranks meet, at least, in the time in which a run that is asked to end saves a checkpoint."""


class Meetings:
    """The steps after which the ranks of one inner run ask each other.

    Ranks of the `tangent` axis need not meet in a step, and are balanced over the horizon, not over every stretch of
    it: they ask where they are compared anyway, every `every` steps, and more often only where steps are so long that
    `grace` seconds would pass in between. A process alone asks itself after each step.
    """

    def __init__(self, ranks: Ranks, horizon: int, every: int, grace: float) -> None:
        shape = ranks.shape
        self._ranks, self._grace = ranks, grace
        self._alone = shape.tangent * shape.data == 1
        self._longest = every if shape.tangent > 1 else -(-horizon // CHANCES)
        self._last, self._next, self._began = 0, 1, time.monotonic()

    def ask(self, step: int, questions: Sequence[bool]) -> list[bool] | None:
        """For each question whether any rank says yes; None where the ranks do not meet after `step`."""
        if self._alone:
            return list(questions)
        if step < self._next:
            return None
        now = time.monotonic()
        seconds = (now - self._began) / max(1, step - self._last)
        *answers, seconds = self._most([*map(float, questions), seconds])
        within_grace = self._grace / MEETINGS_IN_GRACE / max(seconds, 1e-9) if self._grace else self._longest
        self._last, self._next = step, step + max(1, int(min(self._longest, within_grace)))
        self._began = now
        return [answer > 0 for answer in answers]

    def _most(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each number over the ranks of this inner run."""
        for axis in ("data", "tangent"):
            numbers = [max(column) for column in zip(*self._ranks.gather_numbers(axis, numbers), strict=True)]
        return list(numbers)
