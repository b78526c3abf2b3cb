"""Fills the pages that are made from the code: configuration, commands, the Python functions, how to contribute."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fds_dist
from fds_dist.commands.command_line import parser
from fds_dist.config import Config

Schema = Mapping[str, Any]
KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a mapping",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

ROOT = Path(__file__).resolve().parents[2]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Of mkdocs: called for each page."""
    for name, make in PARTS.items():
        marker = f"{{{{ {name} }}}}"
        if marker in markdown:
            markdown = markdown.replace(marker, make())
    return markdown


def commands() -> str:
    """The help of every command, as it prints it, without the keys: they have a page of their own."""
    (choice,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    texts = {name: line.format_help().partition("\nkeys:")[0].rstrip() for name, line in choice.choices.items()}
    return "\n\n".join(f"## {name}\n\n```text\n{text}\n```" for name, text in texts.items())


def python() -> str:
    """A directive of mkdocstrings for each public name: functions first, then classes."""
    names = sorted(fds_dist.__all__, key=lambda name: (name[0].isupper(), name))
    headings = [f"    options: {{heading: fds_dist.{name}, toc_label: {name}}}" for name in names]
    homes = [f"::: {fds_dist._HOMES[name]}.{name}" for name in names]
    return "\n\n".join(map("\n".join, zip(homes, headings, strict=True)))


def configuration() -> str:
    """A table of keys for each section of the config, from its JSON schema."""
    schema = Config.model_json_schema()
    return "\n\n".join(_sections("The top level", schema, dict(schema["$defs"])))


def contributing() -> str:
    """CONTRIBUTING.md without its title."""
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n", 1)[1]


PARTS = {"commands": commands, "python": python, "configuration": configuration, "contributing": contributing}


def _sections(title: str, section: Schema, definitions: dict[str, Schema]) -> Iterator[str]:
    """The section's title, meaning and keys, then those of the sections below it, each at the first place it has."""
    lines, below = ["| key | takes | default | meaning |", "|---|---|---|---|"], []
    for key, value in section.get("properties", {}).items():
        path = key if section["title"] == "Config" else f"{title}.{key}"
        inner = [(path + tail, definitions.pop(name)) for name, tail in _named(value) if name in definitions]
        below += inner
        default = _code(value["default"]) if _is_plain(value.get("default", {})) else ""
        meaning = value.get("description") or (inner[0][1].get("description", "") if inner else "")
        takes = f"[a section](#{_anchor(inner[0][0])})" if "$ref" in value and inner else _cell(_kind(value))
        lines.append(f"| `{key}` | {takes} | {_cell(default)} | {_cell(meaning)} |")
    anchor = "" if section["title"] == "Config" else f" {{#{_anchor(title)}}}"
    yield f"## {title}{anchor}\n\n{_paragraphs(section.get('description', ''))}\n\n" + "\n".join(lines)
    for path, definition in below:
        yield from _sections(path, definition, definitions)


def _anchor(path: str) -> str:
    return path.lower().replace(".", "-")


def _named(value: Schema) -> Iterator[tuple[str, str]]:
    """The definitions that a value may be, each with what its path has beyond the key."""
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], ""
    for choice in value.get("anyOf", ()):
        yield from _named(choice)
    for entries in [value.get("additionalProperties"), *value.get("patternProperties", {}).values()]:
        if isinstance(entries, dict):
            yield from ((name, f".NAME{tail}") for name, tail in _named(entries))


def _kind(value: Schema) -> str:
    """What a value may be, in words."""
    if "enum" in value or "const" in value:
        return ", ".join(map(_code, value.get("enum", [value.get("const")])))
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(map(_kind, value["anyOf"])))
    if "$ref" in value:
        return "a section"
    kind = KINDS.get(str(value.get("type")), "any value")
    if kind == "a list" and "items" in value:
        kind = f"a list, each {_kind(value['items'])}"
    bounds = [f"{sign} {value[name]:g}" for name, sign in BOUNDS.items() if name in value]
    return " ".join([kind, *bounds])


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict) and value != []


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
