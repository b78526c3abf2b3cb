"""What looks like a secret is not written down."""

from __future__ import annotations

from fds_dist.common.secrets import hide_secret_arguments, hide_secrets


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
