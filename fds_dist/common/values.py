"""The value of a hyperparameter: a number, or a list of numbers where the hyperparameter has a `size`.

A row has one value per bucket, a flat row all numbers of these values: those of bucket 0 first, then those of bucket 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field, TypeAdapter, WrapValidator

from fds_dist.common.records import Finite, FloatOrNan

Value: TypeAlias = Any
"""A float or a sequence of floats. Not their union: a reader of a learning rate would have to rule out a sequence."""

Row: TypeAlias = Sequence[Value]
"""Values by bucket."""

MOST_SHOWN = 16
"""A value of more numbers is shown by its mean and its ends."""


def numbers_of(value: Value) -> Sequence[float]:
    """The numbers of one value: `0.1` → `(0.1,)`."""
    return (value,) if isinstance(value, (int, float)) else value


def flat(row: Row) -> list[float]:
    """All numbers of a row, bucket after bucket."""
    return [number for value in row for number in numbers_of(value)]


def nested(numbers: Sequence[float], size: int) -> list[Value]:
    """The row of a flat one: values of `size` numbers; plain numbers where `size` is 1."""
    if size == 1:
        return list(numbers)
    return [list(numbers[first : first + size]) for first in range(0, len(numbers), size)]


def size_of(row: Row) -> int:
    """How many numbers each value of the row has."""
    return len(numbers_of(row[0])) if row else 1


def mapped(function: Callable[[float], float], value: Value) -> Value:
    """The value with `function` of each of its numbers."""
    return function(value) if isinstance(value, (int, float)) else tuple(map(function, value))


def named_numbers(values: Mapping[str, Value], form: str = "{}[{}]") -> dict[str, float]:
    """All numbers by name: `lr`, and `weights[0]`, `weights[1]` ... of a value of several numbers."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, (int, float)):
            numbers[name] = value
        else:
            numbers |= {form.format(name, index): number for index, number in enumerate(value)}
    return numbers


def figures(name: str, value: Value) -> Iterator[tuple[str, float]]:
    """Few numbers under flat names, for dashboards: `lr`; `weights/0`, `weights/1` ...; of a value of more than
    `MOST_SHOWN` numbers `weights/mean`, `weights/min` and `weights/max`."""
    if isinstance(value, (int, float)):
        yield name, value
    elif len(value) <= MOST_SHOWN:
        yield from ((f"{name}/{index}", number) for index, number in enumerate(value))
    else:
        yield from ((f"{name}/{what}", number) for what, number in _summary(value).items())


def text_of(value: Value, digits: int = 3) -> str:
    """`0.1`; `0.1,0.2,0.3`; `mean 0.2 (0.01 to 0.9)` for more than `MOST_SHOWN` numbers."""
    numbers = numbers_of(value)
    if len(numbers) <= MOST_SHOWN:
        return ",".join(f"{number:.{digits}g}" for number in numbers)
    mean, low, high = _summary(numbers).values()
    return f"mean {mean:.{digits}g} ({low:.{digits}g} to {high:.{digits}g})"


def few(texts: Iterable[str], most: int = MOST_SHOWN) -> str:
    """The first `most` texts, separated by commas, and how many more there are."""
    everything = list(texts)
    more = len(everything) - most
    return ", ".join(islice(everything, most)) + (f" and {more} more" if more > 0 else "")


def _summary(numbers: Sequence[float]) -> dict[str, float]:
    return {"mean": math.fsum(numbers) / len(numbers), "min": min(numbers), "max": max(numbers)}


def _read_as(number: TypeAdapter[Any], numbers: TypeAdapter[Any]) -> WrapValidator:
    """Reads a number, or a list of numbers."""

    def read(value: Any, handler: Any) -> Value:
        return (numbers if isinstance(value, list) else number).validate_python(value, strict=True)

    return WrapValidator(read)


def _even(row: Row) -> Row:
    """The row, whose values must be numbers, or lists of one length."""
    if len({isinstance(value, list) and len(value) for value in row}) > 1:
        raise ValueError("its values differ in their length")
    return row


ValueOrNan: TypeAlias = Annotated[Value, _read_as(TypeAdapter(FloatOrNan), TypeAdapter(list[FloatOrNan]))]
"""A `Value` in a record; null is NaN."""

RowOrNan: TypeAlias = list[ValueOrNan]
"""A `Row` in a record; null is NaN."""

FiniteValue: TypeAlias = Annotated[
    Value, _read_as(TypeAdapter(Finite), TypeAdapter(Annotated[list[Finite], Field(min_length=1)]))
]
"""A `Value` in a record of what a run trained with, which is finite."""

FiniteRow: TypeAlias = Annotated[list[FiniteValue], Field(min_length=1), AfterValidator(_even)]
"""A `Row` in a record of what a run trained with."""
