"""The kinds of values and sections in a config: pydantic types that say in our words what is wrong and what would be
right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

if TYPE_CHECKING:
    pass


FAULT = "fault"
"""The error type of every error that carries our own words (`problem`, `expected`) in its context."""

OUT_OF_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}

KINDS = {
    bool: "a switch",
    int: "a whole number",
    float: "a decimal number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def show(value: object, width: int = 60) -> str:
    """A value as the user would write it, cut to `width` characters."""
    named = {None: "null", True: "true", False: "false"}
    text = named[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def wrong_kind(value: object) -> str:
    """What a value of the wrong type is: `'3' is text`."""
    if value is None:
        return "there is no value (null)"
    return f"{show(value)} is {KINDS.get(type(value), f'a Python object of type {type(value).__name__}')}"


def problem_of(value: object, errors: Collection[str]) -> str:
    """What is wrong with a value, given pydantic's error types."""
    too_large = type(value) is int and "float_type" in errors
    if too_large or OUT_OF_RANGE.intersection(errors):
        return f"{show(value)} is out of range"
    if "finite_number" in errors:
        return f"{show(value)} is not finite"
    if {"string_too_short", "string_pattern_mismatch"}.intersection(errors):
        return f"{show(value)} is not valid"
    return wrong_kind(value)


def fault(problem: str, expected: str, related: tuple[str, ...] = ()) -> PydanticCustomError:
    """An error in our words; `related` are the other dotted keys that it is about."""
    return PydanticCustomError(FAULT, "{problem}", {"problem": problem, "expected": expected, "related": related})


def expects(words: str) -> WrapValidator:
    """Replaces whatever pydantic finds wrong with one value by a single error that says what would be right."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError as error:
            types = [detail["type"] for detail in error.errors(include_url=False, include_context=False)]
            raise fault(problem_of(value, types), words) from None

    return WrapValidator(check)


def read_by(function: Callable[[Any], object]) -> WrapValidator:
    """Leaves reading a value to a function: for kinds with several shapes, where each shape has its own errors."""
    return WrapValidator(lambda value, handler: function(value))


def _pattern(value: object) -> str:
    expected = "a regular expression in quotes"
    if not isinstance(value, str):
        raise fault(wrong_kind(value), expected)
    try:
        re.compile(value)
    except (re.error, OverflowError) as error:
        raise fault(f"{show(value)} cannot be compiled ({error})", expected) from None
    return value


_Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_AboveZero = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
_FromOne = Annotated[int, Field(strict=True, ge=1)]
_Text = Annotated[str, Field(strict=True, min_length=1)]

Number = Annotated[_Finite, expects("a number")]
Bound = Annotated[_Finite | None, expects("a number, or null for no bound")]
Positive = Annotated[_AboveZero, expects("a number above 0")]
Clip = Annotated[_AboveZero | None, expects("a number above 0, or null for no clipping")]
NonNegative = Annotated[_Finite, Field(ge=0), expects("a number of at least 0")]
OpenFraction = Annotated[_AboveZero, Field(lt=1), expects("a number above 0 and below 1")]
Ratio = Annotated[_Finite, Field(ge=0, lt=1), expects("a number of at least 0 and below 1")]
UnitInterval = Annotated[_Finite, Field(ge=0, le=1), expects("a number of at least 0 and at most 1")]
Count = Annotated[_FromOne, expects("a whole number of at least 1")]
AutoCount = Annotated[_FromOne | Literal["auto"], expects("auto, or a whole number of at least 1")]
Seed = Annotated[int, Field(strict=True, ge=0), expects("a whole number of at least 0")]
Switch = Annotated[bool, Field(strict=True), expects("true or false")]
Text = Annotated[_Text, expects("text (in quotes where it looks like something else)")]
Pattern = Annotated[str, read_by(_pattern)]
Name = Annotated[
    _Text, Field(pattern=r"^[A-Za-z0-9_-]+$"), expects("a name of letters, digits, _ and - (a number needs quotes)")
]
FolderName = Annotated[
    _Text,
    Field(pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$"),
    expects("a name of letters, digits and . _ - (a number needs quotes)"),
]

_EPOCHS = TypeAdapter[float](Annotated[_AboveZero, expects("a number above 0, or a list with one per outer step")])
_EPOCHS_LIST = TypeAdapter[list[float]](list[Positive])


def _epochs(value: Any) -> float | list[float]:
    return (_EPOCHS_LIST if isinstance(value, list) else _EPOCHS).validate_python(value)


Epochs = Annotated[float | list[float], read_by(_epochs)]


class Section(BaseModel):
    """A section of the config: unknown keys, other types and changes after reading are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    MEANINGFUL_ABSENCE: ClassVar[frozenset[str]] = frozenset()
    """The keys that mean something else when they are left out than with any value."""

    def resolved(self) -> dict[str, Any]:
        """The section as plain values with every default explicit, in the order of the fields.

        Keys whose absence has a meaning of its own stay absent.
        """
        absent = self.MEANINGFUL_ABSENCE - self.model_fields_set
        return {name: _plain(value) for name, value in self if name not in absent}

    def __eq__(self, other: object) -> bool:
        """Equal settings; a bound left out differs from `null`."""
        return type(self) is type(other) and isinstance(other, Section) and self.resolved() == other.resolved()


def _plain(value: object) -> object:
    if isinstance(value, Section):
        return value.resolved()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


class Contradiction(NamedTuple):
    """Values that are right by themselves and wrong together."""

    path: tuple[str, ...]
    problem: str
    expected: str
    related: tuple[str, ...] = ()


def option_contradictions(path: tuple[str, ...], value: object) -> Iterator[Contradiction]:
    """The parts of an option that YAML could not hold, or not read back as they are."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from option_contradictions((*path, key), item)
    elif isinstance(value, list):
        for item in value:
            yield from option_contradictions(path, item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Contradiction(path, f"{show(value)} is not finite", "a finite number")
    elif not isinstance(value, (str, int, float, type(None))):
        yield Contradiction(path, wrong_kind(value), "text, a number, true, false, null, a list or a mapping")


def refuse(contradictions: Iterable[Contradiction]) -> None:
    """Raise pydantic's `ValidationError` with all of them, if there are any."""
    details = [
        InitErrorDetails(type=fault(found.problem, found.expected, found.related), loc=found.path, input=None)
        for found in contradictions
    ]
    if details:
        raise ValidationError.from_exception_data("config", details)
