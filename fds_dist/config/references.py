"""Texts of a config with references to environment variables: filled in where they are used, written as they were.

A config in memory has the values, `${env:NAME}` filled in. What is written down about it (`Config.resolved`) has the
texts as the user wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fds_dist.common.faults import Fault
from fds_dist.common.kinds import show
from fds_dist.common.variables import filled_in, has_references, missing_variables

KeyPath = tuple[str | int, ...]
"""The place of a value: keys, and positions in lists."""

Written = Mapping[KeyPath, tuple[str, Any]]
"""Place → the text as it was written, and the value that the config made of it."""

EXPECTED = "a variable that is set on every rank, such as ${env:HOME}"


def references_in(data: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """The texts with references in plain values, each with its place."""
    if isinstance(data, str) and has_references(data):
        yield path, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from references_in(value, (*path, key))
    elif isinstance(data, list):
        for position, value in enumerate(data):
            yield from references_in(value, (*path, position))


def missing_faults(key: str, text: str) -> list[Fault]:
    """One fault of `key` for each variable of the text that is not set."""
    return [Fault(key, f"there is no environment variable {name}", EXPECTED) for name in missing_variables(text)]


def as_written(fault: Fault, texts: Mapping[str, str]) -> Fault:
    """The fault, about the text as it was written and not about the value of its variable; `texts`: key → text."""
    text = texts.get(fault.key)
    return fault if text is None else replace(fault, problem=fault.problem.replace(show(filled_in(text)), show(text)))


def fill_in(data: Any) -> Any:
    """The plain values with all references filled in."""
    if isinstance(data, dict):
        return {key: fill_in(value) for key, value in data.items()}
    if isinstance(data, list):
        return [fill_in(value) for value in data]
    return filled_in(data) if isinstance(data, str) else data


def values_at(data: Any, texts: Mapping[KeyPath, str]) -> Written:
    """What stands in `data` at the places of the texts, beside the texts; places that are not there are left out."""
    return {place: (text, _at(data, place)) for path, text in texts.items() if (place := _place(data, path))}


def put_back(data: Any, written: Written) -> Any:
    """Puts the texts in the place of their values, in place; a value that has changed since stays."""
    for path, (text, value) in written.items():
        if _place(data, path) == path and _at(data, path) == value:
            _at(data, path[:-1])[path[-1]] = text
    return data


def _place(data: Any, path: KeyPath) -> KeyPath:
    """`path`, as far as `data` goes: a mapping with a name alone may have become that name. () where nothing is."""
    for depth, part in enumerate(path):
        if not isinstance(data, (dict, list)):
            return path[:depth]
        if part not in (data if isinstance(data, dict) else range(len(data))):
            return ()
        data = _at(data, (part,))
    return () if isinstance(data, (dict, list)) else path


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data
