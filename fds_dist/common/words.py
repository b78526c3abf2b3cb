"""Numbers as people read them: counts, percents, durations, memory, spreads. The one place for such formats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

ABSENT = "-"
"""Stands for a figure that is missing or not finite."""


def counted(number: int, thing: str) -> str:
    """`1 rank`, `2,000 ranks`."""
    return f"{number:,} {plural(number, thing)}"


def plural(number: int, thing: str) -> str:
    """`rank` for one, `ranks` for another number."""
    return thing if number == 1 else f"{thing}s"


def number_text(value: float | None, digits: int = 4) -> str:
    """`0.3651`: that many significant digits."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def percent(share: float | None, decimals: int = 1) -> str:
    """`97.5%` for a share of 0.975."""
    return ABSENT if share is None or not math.isfinite(share) else f"{share:.{decimals}%}"


def duration(seconds: float) -> str:
    """`3.1ms`, `4.25s`, `1m02s`, `3h05m` or `2d04h`: at most six characters from 1 ms to 99 days."""
    if not math.isfinite(seconds):
        return ABSENT
    if seconds < 0.9995:
        return f"{1000 * seconds:.3g}ms"
    if seconds < 59.95:
        return f"{seconds:.3g}s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if not hours:
        return f"{minutes}m{whole % 60:02d}s"
    return f"{days}d{hours % 24:02d}h" if days else f"{hours}h{minutes % 60:02d}m"


def time_unit(seconds: float) -> tuple[float, str]:
    """The unit for an axis that ends at `seconds`: its length in seconds, and its symbol."""
    return (1.0, "s") if seconds < 120 else (60.0, "min") if seconds < 7200 else (3600.0, "h")


def byte_unit(count: float) -> tuple[float, str]:
    """The largest binary unit of which `count` bytes make at least one: its size in bytes, and its symbol."""
    symbols = ("B", "KiB", "MiB", "GiB", "TiB")
    power = max((index for index in range(len(symbols)) if count >= 1024.0**index), default=0)
    return 1024.0**power, symbols[power]


def bytes_text(count: float | None) -> str:
    """`512 B`, `1.5 KiB`, `4.0 TiB`."""
    if count is None:
        return ABSENT
    size, symbol = byte_unit(count)
    return f"{count:.0f} B" if symbol == "B" else f"{count / size:.1f} {symbol}"


def few(names: Sequence[str], limit: int = 3) -> str:
    """`a, b, c and 5 more`."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def ranges_text(numbers: Sequence[int]) -> str:
    """Ascending numbers with neighbors drawn together: `0-2, 5`."""
    runs = [list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs)


@dataclass(frozen=True)
class Spread:
    """A figure over several repetitions or seeds."""

    mean: float
    std: float | None
    """Sample standard deviation (n − 1); None for a single number, and where not all are finite."""

    def text(self, form: Callable[[float], str]) -> str:
        """`0.3651 ± 0.0021`, or the mean alone; `form` writes one number."""
        return form(self.mean) if self.std is None else f"{form(self.mean)} ± {form(self.std)}"


def spread(numbers: Iterable[float | None]) -> Spread | None:
    """Mean and standard deviation of the numbers that are not None; None where there is none."""
    present = [number for number in numbers if number is not None]
    if not present:
        return None
    several = len(present) > 1 and all(map(math.isfinite, present))
    return Spread(statistics.fmean(present), statistics.stdev(present) if several else None)
