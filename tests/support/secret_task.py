"""A task that takes secrets among its options, as `secret_task:service` of a config finds it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from own_tasks import Blobs

SECRETS = {
    "api_key": "planted-key-1",
    "url": "postgres://reader:planted-password-2@host/data?sslmode=require",
    "link": "https://host/data?version=3&token=planted-token-3",
    "logins": [{"user": "someone", "passwd": "planted-passwd-4"}],
    "bearer": "${env:PLANTED}",
    "tokens": 100,
}
"""Options with a secret each, written in the config or by reference."""

OVERRIDE = "task.credential=planted-credential-5"
"""One on the command line."""

VARIABLE = {"PLANTED": "planted-variable-6"}


def service(
    api_key: str,
    url: str,
    link: str,
    logins: Sequence[Mapping[str, str]],
    bearer: str,
    tokens: int,
    credential: str = "",
) -> Blobs:
    """Checks that it got the values themselves."""
    assert (api_key, link, bearer) == (SECRETS["api_key"], SECRETS["link"], os.environ["PLANTED"])
    assert "planted-password-2" in url and logins[0]["passwd"] == "planted-passwd-4" and tokens == 100
    return Blobs()
