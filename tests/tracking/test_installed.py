"""A tracker that is asked for but not installed is refused up front, with all others."""

from __future__ import annotations

import importlib.util

import pytest

from fds_dist.common.faults import UserError
from fds_dist.tracking.installed import check_trackers


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("nothing_installed")
def test_each_missing_package_is_a_fault_that_says_how_to_get_it() -> None:
    with pytest.raises(UserError) as caught:
        check_trackers("online", tensorboard=True)
    assert [fault.key for fault in caught.value.faults] == ["tracking.wandb.mode", "tracking.tensorboard"]
    assert all("pip install" in fault.expected for fault in caught.value.faults)


@pytest.mark.usefixtures("nothing_installed")
def test_what_nobody_asks_for_may_be_missing() -> None:
    check_trackers("disabled", tensorboard=False)


@pytest.mark.usefixtures("nothing_installed")
def test_the_mode_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="offline needs the package wandb"):
        check_trackers("disabled", tensorboard=False)
