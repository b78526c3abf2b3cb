"""Learned values and metrics as text, short enough for a line of the console."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from fds_dist.common.values import MOST_SHOWN, Row, flat, numbers_of, text_of
from fds_dist.common.words import number_text
from fds_dist.tracking.records import OuterRecord


def packed(values: Mapping[str, Row], width: int) -> list[str]:
    """The buckets of all hyperparameters in lines of at most `width` characters, several per line if they fit."""
    lines: list[str] = []
    for name, buckets in values.items():
        text = named(name, buckets, width)
        if lines and len(lines[-1]) + len(text) + 3 <= width:
            lines[-1] += f" · {text}"
        else:
            lines.append(text)
    return lines


def named(name: str, buckets: Row, width: int, times: str = "×", gap: str = "…") -> str:
    """'lr 0.1 0.05 … 0.001': three significant digits, without the middle if `width` is too small."""
    numbers = [text_of(value) for value in buckets]
    if len(buckets) > 1 and len(set(map(tuple, map(numbers_of, buckets)))) == 1:
        return f"{name} {numbers[0]} {times}{len(buckets)}"
    text = " ".join([name, *numbers])
    visible = len(numbers)
    while len(text) > width and visible > 2:
        visible -= 1
        text = " ".join([name, *numbers[: visible - visible // 2], gap, *numbers[-(visible // 2) :]])
    return text


def spread_lines(record: OuterRecord) -> list[str]:
    """A line per hyperparameter: mean hypergradients over the replicas ± the standard deviation of one replica, of its
    first `MOST_SHOWN` numbers."""
    lines = []
    for name, sigmas in (record.hypergradient_spread or {}).items():
        pairs = zip(flat(record.hypergradients[name]), flat(sigmas), strict=True)
        numbers = [f"{mean:.2g}±{sigma:.1g}" for mean, sigma in islice(pairs, MOST_SHOWN)]
        lines.append(" ".join([f"d/d {name}:", *numbers]))
    return lines


def metrics_text(record: OuterRecord) -> list[str]:
    """The task's own metrics of the validation data: `f1 0.8312`."""
    return [f"{name} {number_text(value)}" for name, value in (record.metrics or {}).items()]
