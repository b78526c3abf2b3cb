"""Combinations that only `-m slow` runs, and what a fixture of a module has to run for the selected tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_unless(kept: Callable[..., bool], combinations: Iterable[tuple[Any, ...]]) -> list[Any]:
    """The combinations as parameters, slow where `kept` does not hold for them."""
    return [pytest.param(*each, marks=[] if kept(*each) else pytest.mark.slow) for each in combinations]


def wanted(request: pytest.FixtureRequest, *names: str) -> list[tuple[Any, ...]]:
    """What the parameters `names` are in those tests with this fixture, in this module, that are selected."""
    items = (item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path)
    tests = (item for item in items if request.fixturename in item.fixturenames)
    parameters = (test.callspec.params for test in tests if hasattr(test, "callspec"))
    found = (tuple(each[name] for name in names) for each in parameters if each.keys() >= {*names})
    return list(dict.fromkeys(found))
