"""YAML as configs use it: 1.2-style numbers and switches, no duplicate keys, plain values only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from fds_dist.common import limits
from fds_dist.common.faults import Fault
from fds_dist.common.words import plural

STR, NULL, BOOL, INT, FLOAT, MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "null", "bool", "int", "float", "merge")
)
NUMBERS = (
    (INT, re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    (
        FLOAT,
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """Only true and false are switches, `1e-3` is a number, dates are text; no tags beyond JSON's types."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """See `Composer`; refuses what would take for ever or overflow the stack, before it is there."""
        if self._depth > limits.CONFIG_DEPTH:
            raise self._too_much(f"lists or mappings are nested too deeply: more than {limits.CONFIG_DEPTH}")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and id(node) not in self._values:  # else an alias, of a node that is complete or not
            self._values[id(node)] = self._count(node)
        return node

    def _count(self, node: yaml.Node) -> int:
        """The values in a node, those that aliases stand for counted each time."""
        if isinstance(node, yaml.MappingNode):
            if len(node.value) > limits.CONFIG_KEYS:
                raise self._too_much(f"a mapping has more than {limits.CONFIG_KEYS:,} keys", node)
            below = [part for pair in node.value for part in pair]
        else:
            below = node.value if isinstance(node, yaml.SequenceNode) else []
        if any(id(part) not in self._values for part in below):
            raise self._too_much("an alias stands for what it is part of", node)
        count = 1 + sum(self._values[id(part)] for part in below)
        if count > limits.CONFIG_VALUES:
            raise self._too_much(
                f"there are more than {limits.CONFIG_VALUES:,} values, aliases counted each time", node
            )
        return count

    def _too_much(self, problem: str, node: yaml.Node | None = None) -> yaml.YAMLError:
        mark = self.peek_event().start_mark if node is None else node.start_mark
        return yaml.constructor.ConstructorError(None, None, problem, mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError) as error:  # `!!float x`, or a number with more digits than Python reads
            problem = f"could not read {node.value!r:.40}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node), 10)


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag]
    for tag in (STR, NULL, BOOL, FLOAT, "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map", None)
}
_Loader.add_constructor(INT, _Loader.construct_decimal)
_Loader.add_implicit_resolver(BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(MERGE, re.compile(r"^<<$"), ["<"])
for _tag, _regex, _first in NUMBERS:
    _Loader.add_implicit_resolver(_tag, _regex, _first)


class _Dumper(yaml.SafeDumper):
    """Quotes what either this module's loader or any YAML 1.1 loader would take for something else than text."""

    def ignore_aliases(self, data: object) -> bool:
        return True


for _tag, _regex, _first in NUMBERS:
    _Dumper.add_implicit_resolver(_tag, _regex, _first)


def dump_yaml(content: object, width: int) -> str:
    """Plain values as YAML, mappings in their own order, lines of about `width`; floats keep every bit."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=width, allow_unicode=True)


def parse_yaml(text: str, source: str = "", prefix: str = "") -> tuple[object, list[Fault]]:
    """The value that a YAML text holds (None for an empty text) and what is wrong with the text.

    Args:
        text: one YAML document.
        source: the file's name, for messages.
        prefix: dotted key that the value belongs to, for messages.
    """
    where = f"{source}, " if source else ""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        duplicates = list(_duplicates(node, prefix, where))
        return loader.construct_document(node), duplicates
    except yaml.YAMLError as error:
        return None, [Fault(prefix, f"{where}{_described(error, text)}")]
    except RecursionError:
        return None, [Fault(prefix, f"{where}lists or mappings are nested too deeply")]


def _duplicates(node: yaml.Node, prefix: str, where: str) -> Iterator[Fault]:
    """One fault per key that a mapping gives more than once."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicates(item, f"{prefix}[{index}]", where)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, list[int]] = {}
        for key_node, value_node in node.value:
            key = f"{prefix}.{key_node.value}".removeprefix(".")
            if key_node.tag != MERGE:
                lines.setdefault(key, []).append(key_node.start_mark.line + 1)
            yield from _duplicates(value_node, key, where)
        for key, numbers in lines.items():
            if len(numbers) > 1:
                places = [str(line) for line in dict.fromkeys(numbers)]
                lines_text = f"{plural(len(places), 'line')} {' and '.join(places)}"
                yield Fault(key, f"{where}{lines_text}: duplicate key", "each key once")


def _described(error: yaml.YAMLError, text: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        words = ", ".join(filter(None, (error.context, error.problem)))
        return f"line {mark.line + 1}, column {mark.column + 1}: not valid YAML ({words})"
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        return f"line {line}, column {column}: the character {chr(error.character)!r} is not allowed"
    return str(error)
