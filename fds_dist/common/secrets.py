"""Passwords and keys stay out of what is written down about a run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
_SECRET = re.compile(r"key|token|password|secret", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether a value under this name looks like a secret: `WANDB_API_KEY`, `password`."""
    return _SECRET.search(name) is not None


def hide_secrets(config: Any) -> Any:
    """A copy of a plain config with `HIDDEN` for every value whose key looks like a secret."""
    if isinstance(config, Mapping):
        return {key: HIDDEN if is_secret(str(key)) else hide_secrets(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [hide_secrets(value) for value in config]
    return config


def hide_secret_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line with `HIDDEN` for every value whose key looks like a secret: `key=VALUE` and `--key VALUE`."""
    shown: list[str] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if shown and shown[-1].startswith("--") and "=" not in shown[-1] and is_secret(shown[-1]):
            shown.append(HIDDEN)
        elif equals and is_secret(key):
            shown.append(f"{key}={HIDDEN}")
        else:
            shown.append(argument)
    return shown
