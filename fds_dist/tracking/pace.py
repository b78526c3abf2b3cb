"""How long a search still takes: what is left to do, times what it has been measured to cost.

A step with k live tangents takes a + b·k seconds. Tangents begin one after the other over a horizon, so its last steps
take several times as long as its first ones: the speed so far says little about the time left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from fds_dist.tracking.records import InnerBlock, OuterWork

TANGENT_COST = 2.0
"""b/a as long as nothing else is measured: an exact Hessian-vector product costs two plain steps."""
BELIEF = 1.0
"""b/a = `TANGENT_COST` weighs as much as measurements whose live tangents have this variance."""
RECENT = 10
"""Blocks, hundredths of a horizon, whose speed is taken for that of the rest: other people may use the machine, too."""


@dataclass
class _StepSeconds:
    """The fit of a + b·k to measured steps, each with a weight: least squares, with b near `TANGENT_COST`·a."""

    weight: float = 0.0
    tangents: float = 0.0
    """Σ weight·k, and so on."""
    squares: float = 0.0
    seconds: float = 0.0
    products: float = 0.0

    def add(self, steps: int, tangents: float, seconds: float) -> None:
        """`steps` steps with so many live tangents, which took `seconds` together."""
        terms = (steps, steps * tangents, steps * tangents**2, seconds, seconds * tangents)
        names = ("weight", "tangents", "squares", "seconds", "products")
        for name, term in zip(names, terms, strict=True):
            setattr(self, name, getattr(self, name) + term)

    def coefficients(self) -> tuple[float, float]:
        """(a, b), neither below 0.

        They minimize Σ weight·(seconds per step − a − b·k)² + W·(b − c·a)² with c = `TANGENT_COST` and
        W = `BELIEF`·Σ weight / (1 + c·mean k)²: moving along c the fit's own slope by δ costs `BELIEF`·Σ weight·δ².
        """
        c, mean = TANGENT_COST, self.tangents / self.weight
        belief = BELIEF * self.weight / (1 + c * mean) ** 2
        aa, ab, bb = self.weight + belief * c**2, self.tangents - belief * c, self.squares + belief
        determinant = aa * bb - ab**2
        a = (self.seconds * bb - self.products * ab) / determinant
        b = (self.products * aa - self.seconds * ab) / determinant
        if b < 0:
            return self.seconds / self.weight, 0.0
        return (a, b) if a >= 0 else (0.0, self.seconds / self.tangents)


class Pace:
    """The measured pace of a search. Times are in seconds, of a clock whose differences alone count.

    Args:
        work: of each outer step.
        judging: plain steps after the last outer step.
        now: the time at which the first outer step begins.
    """

    def __init__(self, work: Sequence[OuterWork], judging: float, now: float) -> None:
        self._work, self._judging = work, judging
        self._steps = _StepSeconds()
        self._speed = 1.0
        """Seconds of the last blocks over those that all measurements together let expect."""
        self._besides = 1.0
        """Seconds of the last outer step over those of its steps: validation and files are in them."""
        self._has_ended = False
        """Whether an outer step has: before the first one's second block a run starts up, which happens once."""
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, 0)], maxlen=RECENT + 1)
        self._from = self._marks[0]
        self._is_first = True

    @property
    def last(self) -> float:
        """When the last block ended, or the outer step began."""
        return self._marks[-1][0]

    def add(self, now: float, block: InnerBlock) -> None:
        """A block of steps has ended."""
        work, (last, _) = self._work[block.outer_step], self._marks[-1]
        if self._is_first:  # in its time are the witness, compilation and first calls: it says nothing of the others
            self._is_first, self._marks[0] = False, (now, block.steps.stop)
            self._from = (last, 0) if self._has_ended else self._marks[0]
            return
        self._steps.add(len(block.steps), work.live(block.steps.start, block.steps.stop), now - last)
        self._marks.append((now, block.steps.stop))
        (start, first), (_, stop) = self._marks[0], self._marks[-1]
        expected = self._seconds(work, first) - self._seconds(work, stop)
        if len(self._marks) > RECENT and expected:
            self._speed = (now - start) / expected

    def end(self, now: float, outer_step: int) -> None:
        """An outer step is done, and the next one or the judging begins."""
        began, done = self._from
        if self.is_measured and (expected := self._seconds(self._work[outer_step], done)):
            self._besides = (now - began) / expected
        self._has_ended = True
        self._begin(now)

    @property
    def is_measured(self) -> bool:
        """Whether there are measurements to tell the time left from: two blocks of an outer step."""
        return bool(self._steps.weight)

    @property
    def rate(self) -> float | None:
        """The steps per second over the last blocks of this outer step; None before its second block."""
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start) if end > start and last > first else None

    def left(self, block: InnerBlock) -> float:
        """Seconds from the end of `block` to that of its outer step, after `add` and once there are measurements."""
        return self._speed * self._seconds(self._work[block.outer_step], block.steps.stop)

    def later(self, outer_step: int) -> float:
        """Seconds of the outer steps after this one and of the judging; 0 where there is neither."""
        steps = sum(self._seconds(work) for work in self._work[outer_step + 1 :])
        return self._speed * (self._besides * steps + self._steps.coefficients()[0] * self._judging)

    def _seconds(self, work: OuterWork, done: int = 0) -> float:
        """What an outer step takes without its first `done` inner steps, by all measurements."""
        a, b = self._steps.coefficients()
        steps = sum(stage.steps for stage in work.stages)
        return a * (steps - done + work.after) + b * work.live(done, steps) * (steps - done)
