"""Dataclasses as JSON and back, and files with one record per line.

Written: strict JSON, finite floats exactly, NaN and infinities as null. Read: strict types (a text is no number),
unknown keys ignored; what null stands for is said by the field's type.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_json

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import append, make_folder, writing

FloatOrNan = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A number that is read as NaN where the file has null."""

FloatOrInf = Annotated[float, BeforeValidator(lambda value: math.inf if value is None or value != value else value)]
"""A loss to compare by: null, which stands for a run that diverged, is read as infinity, and so is NaN."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number that is never NaN or infinite, such as an element of λ."""

NotNaN = Annotated[float, Field(ge=-math.inf)]
"""A number that is never NaN."""

NonNegative = Annotated[float, Field(ge=0)]
"""A number of at least 0, not NaN."""

Whole = Annotated[int, Field(ge=0)]
"""A whole number of at least 0."""

Count = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""

KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "dataclass_type": "an object",
    "finite_number": "a finite number",
}
"""What a value should have been, by pydantic's type of error."""

Record = TypeVar("Record")


def to_values(record: Any) -> Any:
    """`record` as JSON values: dicts, lists, text, numbers and None."""
    return json.loads(to_json(record, inf_nan_mode="null"))


def to_line(record: Any) -> str:
    """`record` as one line of JSON, without the line's end."""
    return json.dumps(to_values(record), allow_nan=False)


def from_values(kind: type[Record], values: Any) -> Record:
    """The record that `to_values` was given.

    Raises:
        ValueError: a key is missing or has a value of the wrong type; one line names both.
    """
    return from_line(kind, json.dumps(values))


def from_line(kind: type[Record], line: str | bytes) -> Record:
    """The record that `to_line` was given.

    Raises:
        ValueError: the line is not JSON, or a key is missing or has a value of the wrong type; one line names both.
    """
    try:
        return _adapter(kind).validate_json(line, strict=True)
    except ValidationError as error:
        raise ValueError(_problem(error.errors(include_url=False)[0])) from None


def read_records(path: Path, kind: type[Record], expected: str = "") -> Iterator[tuple[Record, int]]:
    """Each record of a file of JSON lines, with the number of bytes up to its line's end.

    A last line without its newline was cut short by a crash; it is left out.

    Args:
        expected: what the user should have given instead of a file that is damaged or cannot be read.

    Raises:
        UserError: the file cannot be read, or a line is not a record; the line's number is named.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(Fault("", f"cannot read {path}: {error.strerror}", expected)) from None
    *lines, _ = content.split(b"\n")
    end = 0
    for number, line in enumerate(lines, start=1):
        end += len(line) + 1
        try:
            yield from_line(kind, line), end
        except ValueError as error:
            raise UserError(Fault("", f"{path}, line {number} is not a record: {error}", expected)) from None


@dataclass(frozen=True)
class RecordFile(Generic[Record]):
    """A file of JSON lines that only grows. The first rank alone reads and writes it."""

    path: Path
    kind: type[Record]
    expected: str = ""
    """What a user should do about a damaged file."""

    def read(self) -> list[Record]:
        """All records; empty where there is no file. A last line that a crash cut short is removed from the file.

        Raises:
            UserError: a line is not a record; the file and the line's number are named.
        """
        if not self.path.exists():
            return []
        entries = list(read_records(self.path, self.kind, self.expected))
        end = entries[-1][1] if entries else 0
        if end < self.path.stat().st_size:
            with writing(self.path):
                os.truncate(self.path, end)
        return [record for record, _ in entries]

    def append(self, records: Iterable[Record]) -> None:
        """Adds lines, all or (in a crash) a leading part of them; they are on disk before it returns.

        Raises:
            WriteFailed: no line was added.
        """
        make_folder(self.path.parent)
        append(self.path, "".join(to_line(record) + "\n" for record in records).encode())


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _problem(error: ErrorDetails) -> str:
    """What is wrong in one line, with key and value: `val_loss: 'low' is not a number`."""
    kind, path = error["type"], ".".join(map(str, error["loc"]))
    if kind == "missing":
        return f"no key {path}"
    if kind == "json_invalid":
        return "it is not JSON"
    shown = repr(error["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    problem = f"{shown} is not {KINDS[kind]}" if kind in KINDS else f"{shown} is not valid: {error['msg']}"
    return f"{path}: {problem}" if path else problem
