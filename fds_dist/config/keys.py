"""The keys of a config: which there are, and what each one takes and means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fds_dist.common.kinds import fault_of
from fds_dist.config.sections import Section
from fds_dist.config.yaml_text import dump_yaml

ANY_NAME = "NAME"
"""Stands for a name that the user chooses in a valid key."""

FREE = "what its meaning says"
"""What a key takes whose values are checked where they are used."""

DEPENDS = "depends"
"""The default of a key whose absence means something that no value means, or which other keys decide."""


BEYOND = 10**30
"""A number that is right only where there is no bound that matters: the fault of any other kind names its bound."""


@dataclass(frozen=True)
class Key:
    """One key of a section."""

    name: str
    """Dotted, with NAME where the user chooses."""
    kind: Any
    """The type of its values, with their checks."""
    default: str
    """As YAML, or `DEPENDS`; "" where the key is required."""
    meaning: str
    """Its docstring, on one line."""
    below: tuple[Key, ...] = ()
    """The keys of the section that it holds, or may hold."""

    @property
    def takes(self) -> str:
        """The values that are right, in words: "a whole number of at least 1"."""
        words = words_for(self.kind)
        is_optional = any(part is NoneType for part in _parts(self.kind))
        return f"{words}, or null" if is_optional and "null" not in words else words

    @property
    def sentence(self) -> str:
        """The first sentence of the meaning."""
        return re.split(r"(?<=\.) (?=[A-Z])", self.meaning)[0]


def keys_of(section: type[Section], prefix: str = "") -> tuple[Key, ...]:
    """The keys of a section, in its order, each with those below it."""
    return tuple(
        Key(
            prefix + name,
            kind_of(field),
            _default(section, name, field),
            " ".join((field.description or "").split()),
            tuple(
                key
                for between, inner in sections_in(field.annotation)
                for key in keys_of(inner, f"{prefix}{name}.{between}")
            ),
        )
        for name, field in section.model_fields.items()
    )


def all_keys(keys: tuple[Key, ...]) -> Iterator[Key]:
    """The keys and all below them."""
    for key in keys:
        yield key
        yield from all_keys(key.below)


def general(path: tuple[str | int, ...]) -> str:
    """The dotted key, with NAME in place of the names that the user chooses."""
    parts = [str(part) for part in path]
    if parts[:1] == ["hyperparameters"]:
        parts[1:2] = [ANY_NAME] * len(parts[1:2])
        if parts[2:3] == ["per_group"]:
            parts[3:4] = [ANY_NAME] * len(parts[3:4])
    return ".".join(parts)


def kind_of(field: FieldInfo) -> Any:
    """The field's type with its checks."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation  # type: ignore[misc]


def words_for(kind: Any) -> str:
    """What a kind takes, in the words of the fault that another value gets."""
    for wrong in (BEYOND, object()):
        try:
            TypeAdapter(kind).validate_python(wrong)
        except ValidationError as error:
            words = ", or ".join(dict.fromkeys(fault_of("", each).expected for each in error.errors(include_url=False)))
            lists = [part for part in _parts(kind) if get_origin(part) is list]
            of_each = f"; of each entry: {words_for(get_args(lists[0])[0])}" if words == "a list" and lists else ""
            return words + of_each
    return FREE


def _parts(kind: Any) -> tuple[Any, ...]:
    """The kind, what its checks surround, and the alternatives of that."""
    inner = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return (kind, inner, *get_args(inner))


def _default(section: type[Section], name: str, field: FieldInfo) -> str:
    if name in section.DEPENDENT | section.MEANINGFUL_ABSENCE:
        return DEPENDS
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    return as_yaml(value.resolved() if isinstance(value, Section) else value)


def as_yaml(value: object) -> str:
    """A plain value on one line of YAML."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{as_yaml(key)}: {as_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    return dump_yaml([value], 10**6).strip()[1:-1]


def sections_in(annotation: Any) -> Iterator[tuple[str, type[Section]]]:
    """The sections that a field may hold, each with the part of the key between the field and the section's keys."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield "", annotation
        return
    between = f"{ANY_NAME}." if get_origin(annotation) is dict else ""
    for argument in get_args(annotation):
        for below, section in sections_in(argument):
            yield between + below, section
