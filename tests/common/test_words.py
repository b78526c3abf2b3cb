"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from fds_dist.common.words import (
    Spread,
    byte_unit,
    bytes_text,
    counted,
    duration,
    number_text,
    percent,
    plural,
    ranges_text,
    spread,
)


def test_counts_have_their_plural() -> None:
    assert [counted(number, "rank") for number in (0, 1, 2, 2000)] == ["0 ranks", "1 rank", "2 ranks", "2,000 ranks"]
    assert [plural(number, "line") for number in (1, 2)] == ["line", "lines"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.0031, "3.1ms"), (0.9994, "999ms"), (0.9996, "1s"), (4.25, "4.25s"), (59.94, "59.9s"), (59.96, "1m00s")],
        *[(62, "1m02s"), (3599.6, "1h00m"), (9000, "2h30m"), (86399, "23h59m"), (187200, "2d04h")],
        *[(math.inf, "-"), (math.nan, "-")],
    ],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (2**42, "4.0 TiB"), (None, "-")],
)
def test_bytes_have_binary_units(count: int | None, text: str) -> None:
    assert bytes_text(count) == text


def test_an_axis_has_the_unit_of_its_largest_number() -> None:
    assert byte_unit(7 * 2**20) == (2**20, "MiB") and byte_unit(2**60) == (2**40, "TiB")


def test_missing_and_infinite_figures_are_a_dash() -> None:
    assert [percent(share) for share in (0.975, None, math.nan)] == ["97.5%", "-", "-"]
    assert percent(0.4567, 0) == "46%"
    assert [number_text(value) for value in (0.123456, None, math.inf)] == ["0.1235", "-", "-"]


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8")])
def test_neighbors_are_drawn_together(numbers: list[int], text: str) -> None:
    assert ranges_text(numbers) == text


def test_spread_is_over_what_there_is() -> None:
    assert spread([1.0, None, 3.0]) == Spread(2.0, math.sqrt(2))
    assert spread([None, 4.0]) == Spread(4.0, None)
    assert spread([1.0, math.inf]) == Spread(math.inf, None)
    assert spread([None]) is None


def test_spread_in_words() -> None:
    assert Spread(0.3651, 0.0021).text("{:.4f}".format) == "0.3651 ± 0.0021"
    assert Spread(0.5, None).text(percent) == "50.0%"
