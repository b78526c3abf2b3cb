"""Options of functions, checked by the kinds that their signatures name."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from fds_dist.common.faults import UserError
from fds_dist.common.kinds import Count, OpenFraction, Sizes, one_of
from fds_dist.common.options import checked, kind_faults, option_faults

COLORS = ("red", "green")


@checked("task", side=one_of((1, 2, 4)))
def example(
    data: list[str],
    *,
    size: Count,
    share: OpenFraction = 0.1,
    color: Annotated[str, one_of(COLORS)] = "red",
    widths: Sizes = (3,),
    side: int = 1,
) -> tuple[object, ...]:
    return data, size, share, color, widths, side


def faults(**options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        example(**options)
    return list(map(str, caught.value.faults))


def test_right_options_arrive_as_they_are() -> None:
    widths = [1, 2]
    assert example(["a"], size=2, color="green", widths=widths, side=4) == (["a"], 2, 0.1, "green", widths, 4)
    assert example.__name__ == "example"


def test_names_and_values_are_told_at_once_with_the_key_the_value_and_what_would_be_right() -> None:
    assert faults(shar=0.2, share="0.2", color="gren", widths=[1, True], side=3) == [
        "task.shar: unknown key; did you mean task.share?",
        "task.data: is missing; expected a value",
        "task.size: is missing; expected a value",
        "task.share: '0.2' is text; expected a number above 0 and below 1",
        "task.color: 'gren' is not valid; expected one of red, green; did you mean green?",
        "task.widths[1]: true is a switch; expected a whole number of at least 1",
        "task.side: 3 is not valid; expected one of 1, 2, 4",
    ]


def test_an_argument_without_a_kind_is_left_to_the_function() -> None:
    assert option_faults(example, {"data": 3, "size": 1}, "task") == []


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_one_of_some_numbers_is_none_of_another_type(value: object) -> None:
    (fault,) = kind_faults(Annotated[int, one_of((1, 2))], value, "k")
    assert fault.expected == "one of 1, 2"
