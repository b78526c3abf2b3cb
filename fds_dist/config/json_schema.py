"""The JSON Schema of configs, by which editors complete keys, show their meaning and mark mistakes.

It says what each value may be. What only several keys together decide (lengths that fit, settings that exclude each
other) is left to `load_config`, and so are the options of tasks and models, and `${env:NAME}` in the place of one of a
few names. JSON Schema takes 3.0 for a whole number.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from fds_dist.config.schema import Config
from fds_dist.config.sections import Section

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _Generator(GenerateJsonSchema):
    """Pydantic's schema without titles, which repeat the keys; mappings take names of their pattern alone."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = super().default_schema(schema)
        if isinstance(described.get("default"), dict):  # a section: its keys have their own defaults
            del described["default"]
        return described

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        described = super().dict_schema(schema)
        return {**described, "additionalProperties": False} if "patternProperties" in described else described

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        described, section = super().model_schema(schema), schema["cls"]
        described.pop("title", None)
        if issubclass(section, Section):
            dependent = section.MEANINGFUL_ABSENCE | section.DEPENDENT
            for name in dependent:
                described["properties"][name].pop("default", None)
            required = [name for name in described.pop("required", []) if name not in dependent]
            described |= {"required": required} if required else {}
        return described


def config_schema() -> dict[str, Any]:
    """The JSON Schema of a config, in the dialect 2020-12."""
    schema = Config.model_json_schema(schema_generator=_Generator)
    return _in_lines({"$schema": DIALECT, "title": "A config of fds_dist", **schema})


def schema_text() -> str:
    """`config_schema` as JSON text."""
    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


def _in_lines(value: Any) -> Any:
    """The schema with each description on one line."""
    if isinstance(value, list):
        return [_in_lines(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: " ".join(item.split()) if key == "description" and isinstance(item, str) else _in_lines(item)
        for key, item in value.items()
    }
