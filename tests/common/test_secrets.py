"""What looks like a secret is not written down."""

from __future__ import annotations

import time

import pytest

from fds_dist.common.faults import Fault
from fds_dist.common.secrets import hide_in_text, hide_secret_arguments, hide_secrets, is_secret


def test_values_of_secret_keys_are_hidden_in_a_config() -> None:
    config = {"seed": 1, "task": {"api_key": "abc", "paths": ["a", {"Password": "abc"}]}, "tokens": ["abc"]}
    assert hide_secrets(config) == {
        "seed": 1,
        "task": {"api_key": "***", "paths": ["a", {"Password": "***"}]},
        "tokens": "***",
    }


def test_values_of_secret_keys_are_hidden_in_a_command_line() -> None:
    line = ["fds-dist", "optimize", "seed=1", "task.api_key=abc", "--password", "abc", "--Token=abc", "--resume", "r/1"]
    assert hide_secret_arguments(line) == [
        *["fds-dist", "optimize", "seed=1", "task.api_key=***"],
        *["--password", "***", "--Token=***", "--resume", "r/1"],
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("key", "keys", "api_key", "WANDB_API_KEY", "apiKey", "x.y.secret-key", "sshKey", "private_key", "OAuthToken"),
        *("auth", "bearer", "credential", "credentials", "passwd", "pwd", "private", "ssh", "authorization", "cookie"),
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("monkey", "keyword", "keyboard", "author", "tokenizer", "tokenize", "path", "passes", "compass", "secretary"),
        *("sshape", "lr", "weight_decay", "image_key", "label_keys", "pad_token", "task.eos_token", "signal", "basic"),
    ],
)
def test_names_of_what_is_no_secret(name: str) -> None:
    assert not is_secret(name)


def test_numbers_and_switches_are_no_secrets_and_references_say_only_where_one_is() -> None:
    config = {
        "tokens": 100,
        "private": True,
        "password": "${env:DB_PASSWORD}",
        "hyperparameters": {"key": {"init": 0.1, "scale": "log"}},
        "inner": {"groups": {"keys": "attention.key"}},
    }
    assert hide_secrets(config) == config


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://user:p@ss@host/db?x=1", "postgres://user:***@host/db?x=1"),
        ("https://ghp_abc@host/x.git", "https://***@host/x.git"),
        ("ssh://git@host/x.git", "ssh://git@host/x.git"),
        ("https://host/x?token=abc&n=3&sig=zz#a", "https://host/x?token=***&n=3&sig=***"),
        ("https://u:${env:PW}@host", "https://u:${env:PW}@host"),
        ("Server=h;Password=abc;Port=3", "Server=h;Password=***;Port=3"),
        ("Authorization: Bearer abcdefghijk", "Authorization: Bearer ***"),
        ("task={name: x, auth: {user: a}, urls: ['s3://k:v@b'], tokens: 100}", None),
        ('{"password":"abc"}', '{"password":***}'),
        ("task.path=/data/x", "task.path=/data/x"),
        ("lr: {init: 0.1, scale: log}", "lr: {init: 0.1, scale: log}"),
    ],
)
def test_secrets_within_a_text(text: str, shown: str | None) -> None:
    if shown is None:
        shown = "task={name: x, auth: ***, urls: ['s3://k:***@b'], tokens: 100}"
    assert hide_in_text(text) == shown


def test_a_fault_does_not_show_the_secret_that_it_is_about() -> None:
    assert str(Fault("task.api_key", "'abc' is text", "a number")) == "task.api_key: *** is text; expected a number"
    assert str(Fault("task.token=abc", "is not an override")) == "task.token=***: is not an override"
    assert str(Fault("task.api_key", "unknown key")) == "task.api_key: unknown key"


def test_long_texts_take_no_time() -> None:
    began = time.process_time()
    for part in ("{a: ", "a=", "a://", "x", "{", "token=", "a.b", "https://", "'", "a: '"):
        hide_in_text(part * 30_000)
    assert time.process_time() - began < 20  # well under a second, where no pattern looks back over the text again
