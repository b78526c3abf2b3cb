"""Passwords and keys stay out of what is written down about a run.

A value is secret by the name it stands under (`api_key`, `--password`), or by its place in a text (the password of a
URL, a query's `?token=`). A reference such as `${env:NAME}` is none: it only says where the secret is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fds_dist.common.variables import is_reference

HIDDEN = "***"

SECRET_WORDS = {
    *("token", "tokens", "password", "passwords", "passwd", "passphrase", "passcode", "pass", "pwd", "pw"),
    *("secret", "secrets", "credential", "credentials", "cred", "creds", "cookie", "private", "ssh", "key", "keys"),
    *("auth", "authentication", "authorization", "bearer", "jwt", "pat", "sas", "sig", "signature"),
    *("apikey", "accesskey", "secretkey", "privatekey", "sshkey", "authtoken", "accesstoken"),
}
"""Words of a name that make its text a secret. Case, `_`, `-`, `.` and capitals within a name separate words, so that
`monkey`, `keyword`, `author` and `tokenizer` are none."""

HARMLESS = re.compile(
    r"(?:pad|eos|bos|unk|mask|sep|cls|special|stop)[_-]tokens?"
    r"|(?:image|label|input|output|target|text|sort|primary|column|data|sample|batch|group|dict|index|cache)[_-]keys?",
    re.IGNORECASE,
)
"""Names of text processing and of columns of data, which hold such a word and no secret."""

NAMES_OF_THE_USER = ("hyperparameters", "groups")
"""Sections whose keys are names of numbers or of parameters: there, no name makes a value secret."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NUMBER = re.compile(r"[-+]?[0-9._]+(?:[eE][-+]?[0-9]+)?|true|false|null", re.IGNORECASE)
_PASSWORD = re.compile(r"(?P<before>(?<![\w+.-])[A-Za-z][\w+.-]*://[^\s/?#:@]*:)(?P<secret>[^\s/?#]*)(?=@)")
_USER = re.compile(r"(?P<before>\bhttps?://)(?P<secret>[^\s/?#:@]+)(?=@)", re.IGNORECASE)  # a token in the user's place
_SCHEME = re.compile(r"(?P<before>\b(?:bearer|basic)\s+)(?P<secret>[^\s,;'\"]{8,})", re.IGNORECASE)
_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|\[[^\]]*\]|\{[^}]*\}|(?:\$\{[^}]*\}|[^\s,;&\"'{}\]])+")
_EQUALS = re.compile(r"(?<![\w.-])(?P<name>[A-Za-z][\w.-]*)\s?=\s?")
"""The name in `name=value`: of an override, of a query, of a connection string."""
_COLON = re.compile(r"(?<![\w.-])(?P<name>[A-Za-z][\w.-]*)[\"']?\s*:\s+|[\"'](?P<quoted>[A-Za-z][\w.-]*)[\"']\s*:\s*")
"""The name in `name: value`."""


def is_secret(name: str) -> bool:
    """Whether a text under this name looks like a secret: `WANDB_API_KEY`, `password`, `sshKey`."""
    words = {word.lower() for word in _WORD.findall(name)}
    return not SECRET_WORDS.isdisjoint(words) and not HARMLESS.fullmatch(name.rpartition(".")[2])


def hide_secrets(config: Any) -> Any:
    """A copy of plain values with `HIDDEN` for every secret.

    A value with text in it is hidden under a secret key; numbers and switches are not: `tokens: 100`. All other text
    goes through `hide_in_text`.
    """
    if isinstance(config, Mapping):
        return {key: _value_of(str(key), value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [hide_secrets(value) for value in config]
    return hide_in_text(config) if isinstance(config, str) else config


def _value_of(key: str, value: Any) -> Any:
    if key in NAMES_OF_THE_USER and isinstance(value, Mapping):
        return {name: hide_secrets(item) for name, item in value.items()}
    return HIDDEN if is_secret(key) and _has_text(value) else hide_secrets(value)


def _has_text(value: Any) -> bool:
    """Whether there is text that is no reference in the value."""
    if isinstance(value, Mapping):
        return any(map(_has_text, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_text, value))
    return isinstance(value, str) and not is_reference(value)


def hide_in_text(text: str) -> str:
    """The text with `HIDDEN` for what is secret in it.

    That is the password of a URL (`scheme://user:PASSWORD@host`, `https://TOKEN@host`), and the value after a secret
    name: `?token=VALUE`, `Password=VALUE;`, `{api_key: VALUE}`, `Bearer VALUE`.
    """
    for pattern in (_PASSWORD, _USER, _SCHEME):
        text = pattern.sub(lambda match: match["before"] + _hidden(match["secret"]), text)
    before, brace, mapping = _named_hidden(_EQUALS, text).partition("{")
    return before + _named_hidden(_COLON, brace + mapping)  # a message may have a colon, too, outside of braces


def _named_hidden(names: re.Pattern[str], text: str) -> str:
    """The text with `HIDDEN` for each value that stands behind a secret name; `names` matches up to the value."""
    parts, end = [], 0
    for match in names.finditer(text):
        name = next(filter(None, match.groups()))
        if match.start() >= end and is_secret(name) and (value := _VALUE.match(text, match.end())):
            shown = value[0] if _NUMBER.fullmatch(value[0]) else _hidden(value[0])
            parts += [text[end : match.end()], shown]
            end = value.end()
    return "".join([*parts, text[end:]])


def _hidden(text: str) -> str:
    return text if is_reference(text.strip("\"'")) or text == HIDDEN else HIDDEN


def hide_in_fault(key: str, problem: str) -> str:
    """What is wrong with the value of `key`, without that value where it is secret."""
    if is_secret(key.rpartition(".")[2]):
        problem = re.sub(r"'[^']*'|\"[^\"]*\"", lambda quoted: _hidden(quoted[0]), problem)
    return hide_in_text(problem)


def hide_secret_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line with `HIDDEN` for every secret: `key=VALUE`, `--key VALUE`, and what `hide_in_text` finds."""
    shown: list[str] = []
    for argument in arguments:
        option, key, equals, value = shown[-1] if shown else "", *argument.partition("=")
        if option.startswith("--") and "=" not in option and is_secret(option):
            shown.append(_hidden(argument))
        elif equals and is_secret(key):
            shown.append(f"{key}={value if _NUMBER.fullmatch(value) else _hidden(value)}")
        else:
            shown.append(hide_in_text(argument))
    return shown
