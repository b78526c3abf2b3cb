"""References to environment variables in texts: `${env:NAME}` stands for the value of NAME, and is written down as it
is, so that a secret stays out of files.
"""

from __future__ import annotations

import os
import re

_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")


def is_reference(text: str) -> bool:
    """Whether the text is made of references alone."""
    return re.fullmatch(rf"(?:{_REFERENCE.pattern})+", text) is not None


def missing_variables(text: str) -> list[str]:
    """The names in the text's references that no environment variable has."""
    return [name for name in dict.fromkeys(_REFERENCE.findall(text)) if name not in os.environ]


def has_references(text: str) -> bool:
    """Whether there is a reference in the text."""
    return _REFERENCE.search(text) is not None


def filled_in(text: str) -> str:
    """The text with the values of its references; the name alone stands for a variable that is not set."""
    return _REFERENCE.sub(lambda match: os.environ.get(match[1], match[1]), text)
