"""The kinds of values that a user writes: pydantic types whose errors say in our words what is wrong with a value and
what would be right. The sections of the config are made of them, and so are the options of tasks and models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import ErrorDetails, PydanticCustomError

from fds_dist.common import limits
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.paths import expand_path
from fds_dist.common.registry import nearest
from fds_dist.common.secrets import hide_secrets

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


EXPECTED_TYPE = {"model_type": "a mapping", "dict_type": "a mapping", "list_type": "a list"}

LONGEST = 60
"""Characters of a value that a message shows."""


def show(value: object) -> str:
    """A value as the user would write it, without the secrets in it, cut to `LONGEST` characters."""
    named = {None: "null", True: "true", False: "false"}
    text = named[value] if value is None or isinstance(value, bool) else repr(hide_secrets(value))
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


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
    if {"string_too_short", "string_too_long", "string_pattern_mismatch"}.intersection(errors):
        return f"{show(value)} is not valid"
    return wrong_kind(value)


def fault(problem: str, expected: str, related: tuple[str, ...] = (), suggestion: str = "") -> PydanticCustomError:
    """An error in our words; `related` are the other dotted keys that it is about."""
    context = {"problem": problem, "expected": expected, "related": related, "suggestion": suggestion}
    return PydanticCustomError(FAULT, "{problem}", context)


def fault_of(key: str, detail: ErrorDetails, expected: str = "") -> Fault:
    """One of pydantic's errors about the value of `key`, in our words.

    Args:
        expected: what would be right, where neither the error nor its type says so.
    """
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == FAULT:
        return Fault(key, context["problem"], context["expected"], context["suggestion"])
    if kind == "literal_error":
        choices = context["expected"].replace("'", "")
        problem = f"{show(value)} is not valid" if isinstance(value, str) else wrong_kind(value)
        return Fault(key, problem, choices, _nearest_choice(value, choices.replace(" or ", ", ").split(", ")))
    return Fault(key, problem_of(value, (kind,)), expected or EXPECTED_TYPE.get(kind, "another value"))


def _nearest_choice(value: object, choices: Sequence[object]) -> str:
    return nearest(value, map(str, choices)) if isinstance(value, str) else ""


def expects(words: str) -> WrapValidator:
    """Replaces whatever pydantic finds wrong with one value by a single error that says what would be right.

    Of a bound from `limits`, it speaks only where a value is beyond it.
    """

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError as error:
            details = error.errors(include_url=False)
            problem = problem_of(value, [detail["type"] for detail in details])
            raise fault(problem, words + _beyond(details, words)) from None

    return WrapValidator(check)


def _beyond(details: Sequence[ErrorDetails], words: str) -> str:
    """The upper bound that a value is above, in words; "" where it is not, or where the words have it already."""
    for detail in details:
        context = detail.get("ctx", {})
        if detail["type"] == "less_than_equal":
            most = context["le"]
            bound = f"at most {most:,}" if isinstance(most, int) else f"at most {most:g}"
            return "" if bound in words else f", {bound}"
        if detail["type"] == "greater_than_equal" and context["ge"] == -limits.NUMBER:
            return f", at least {-limits.NUMBER:g}"
    return ""


def read_by(function: Callable[[Any], object]) -> WrapValidator:
    """Leaves reading a value to a function: for kinds with several shapes, where each shape has its own errors."""
    return WrapValidator(lambda value, handler: function(value))


def one_of(choices: Collection[str | int]) -> WrapValidator:
    """One of some names or numbers that only the program knows, as `Literal` is for those in its text."""

    def check(value: object) -> object:
        if any(type(value) is type(choice) and value == choice for choice in choices):
            return value
        named = [str(choice) for choice in choices]
        problem = f"{show(value)} is not valid" if type(value) in map(type, choices) else wrong_kind(value)
        raise fault(problem, f"one of {', '.join(named)}", suggestion=_nearest_choice(value, named))

    return read_by(check)


def _pattern(value: object) -> str:
    expected = "a regular expression in quotes"
    if not isinstance(value, str):
        raise fault(wrong_kind(value), expected)
    try:
        re.compile(value)
    except (re.error, OverflowError) as error:
        raise fault(f"{show(value)} cannot be compiled ({error})", expected) from None
    return value


def expanded(path: str) -> str:
    """A path with `~` and environment variables filled in; see `expand_path`."""
    try:
        return str(expand_path(path))
    except UserError as error:
        raise fault(error.faults[0].problem, error.faults[0].expected) from None


_Finite = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-limits.NUMBER, le=limits.NUMBER)]
_AboveZero = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=limits.NUMBER)]
_FromOne = Annotated[int, Field(strict=True, ge=1, le=limits.COUNT)]
_Text = Annotated[str, Field(strict=True, min_length=1)]

Number = Annotated[_Finite, expects("a number")]
Bound = Annotated[_Finite | None, expects("a number, or null for no bound")]
NumberOrNull = Annotated[_Finite | None, expects("a number, or null")]
Positive = Annotated[_AboveZero, expects("a number above 0")]
Decay = Annotated[
    Annotated[_Finite, Field(ge=0, lt=1)] | None, expects("a number of at least 0 and below 1, or null for no average")
]
Clip = Annotated[_AboveZero | None, expects("a number above 0, or null for no clipping")]
Timeout = Annotated[
    Annotated[_Finite, Field(ge=5, le=86400)], expects("a number of seconds of at least 5 and at most 86400, a day")
]
Seconds = Annotated[_AboveZero, Field(le=limits.SECONDS), expects("a number above 0")]
SecondsFromZero = Annotated[_Finite, Field(ge=0, le=limits.SECONDS), expects("a number of at least 0")]
SecondsOrNull = Annotated[
    Annotated[_AboveZero, Field(le=limits.SECONDS)] | None, expects("a number of seconds above 0, or null for no limit")
]
NonNegative = Annotated[_Finite, Field(ge=0), expects("a number of at least 0")]
FromOne = Annotated[_Finite, Field(ge=1), expects("a number of at least 1")]
OpenFraction = Annotated[_AboveZero, Field(lt=1), expects("a number above 0 and below 1")]
Ratio = Annotated[_Finite, Field(ge=0, lt=1), expects("a number of at least 0 and below 1")]
UnitInterval = Annotated[_Finite, Field(ge=0, le=1), expects("a number of at least 0 and at most 1")]
Count = Annotated[_FromOne, expects("a whole number of at least 1")]
Runs = Annotated[_FromOne, Field(le=limits.RUNS), expects("a whole number of at least 1")]
LearnedCount = Annotated[_FromOne, Field(le=limits.LEARNED), expects("a whole number of at least 1")]
AutoCount = Annotated[_FromOne | Literal["auto"], expects("auto, or a whole number of at least 1")]
Whole = Annotated[int, Field(strict=True, ge=0, le=limits.RUNS), expects("a whole number of at least 0")]
Seed = Annotated[int, Field(strict=True, ge=0, le=limits.SEED), expects("a whole number of at least 0")]
Side = Annotated[_FromOne, Field(le=limits.PIXELS), expects("a whole number of at least 1, in pixels")]
Pixels = Annotated[int, Field(strict=True, ge=0, le=limits.PIXELS), expects("a whole number of at least 0, in pixels")]
CountOrAll = Annotated[_FromOne | None, expects("a whole number of at least 1, or null for all")]
Folder = Annotated[_Text, expects("the path of a folder"), AfterValidator(expanded)]
FolderOrNone = Annotated[
    _Text | None, expects("the path of a folder, or null"), AfterValidator(lambda path: path and expanded(path))
]
Switch = Annotated[bool, Field(strict=True), expects("true or false")]
Text = Annotated[_Text, expects("text (in quotes where it looks like something else)")]
Pattern = Annotated[str, read_by(_pattern)]

_LETTER = r"[^\x00-\x20!-,./:-@\[-^`{-\xa0\u2028-\u202e]"
"""Of a name: letters of any script, digits, symbols, _ and -; nothing that means something in keys, paths or shells."""

Name = Annotated[
    _Text,
    Field(pattern=f"^{_LETTER}+( {_LETTER}+)*$"),
    expects("a name of letters, digits, _ and - (a number needs quotes)"),
]
FolderName = Annotated[
    _Text,
    Field(pattern=rf"^\.*{_LETTER}([ .]*{_LETTER})*\.*$", max_length=limits.NAME_LENGTH),
    expects("a name of letters, digits and . _ - (a number needs quotes)"),
]

_LIST = "or a list with one per outer step"
_Epochs = Annotated[_AboveZero, Field(le=limits.EPOCHS)]
_Steps = Annotated[_FromOne, Field(le=limits.STEPS)]
EpochsOrNone = Annotated[_Epochs | None, expects("a number above 0, or null")]
StepsOrNone = Annotated[_Steps | None, expects("a whole number of at least 1, or null")]
_EPOCHS = TypeAdapter[float | None](Annotated[_Epochs | None, expects(f"a number above 0, {_LIST}")])
_EPOCHS_LIST = TypeAdapter[list[float]](list[Annotated[_Epochs, expects("a number above 0")]])
_STEPS = TypeAdapter[int | None](Annotated[_Steps | None, expects(f"a whole number of at least 1, {_LIST}")])
_STEPS_LIST = TypeAdapter[list[int]](list[Annotated[_Steps, expects("a whole number of at least 1")]])


def _epochs(value: Any) -> float | list[float] | None:
    return (_EPOCHS_LIST if isinstance(value, list) else _EPOCHS).validate_python(value)


def _steps(value: Any) -> int | list[int] | None:
    return (_STEPS_LIST if isinstance(value, list) else _STEPS).validate_python(value)


Epochs = Annotated[_AboveZero | list[_AboveZero] | None, read_by(_epochs)]
Steps = Annotated[_FromOne | list[_FromOne] | None, read_by(_steps)]

_SIZES = TypeAdapter[list[int]](list[Count])


def sizes(value: Any) -> list[int]:
    """Reads a list of whole numbers of at least 1; an error names the entry."""
    if not isinstance(value, (list, tuple)):
        raise fault(wrong_kind(value), "a list of whole numbers of at least 1")
    return _SIZES.validate_python(list(value))


Sizes = Annotated[Sequence[int], read_by(sizes)]
