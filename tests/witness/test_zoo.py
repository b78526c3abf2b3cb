"""Other people's networks are right or refused, never wrong: `python -m pytest -m zoo -rA tests/witness/test_zoo.py`.

Needs timm and transformers, which the package itself does not.
"""

from __future__ import annotations

import importlib.util

import pytest
from zoo import NETWORKS, tried

pytestmark = pytest.mark.zoo
WITH_RUNNING_STATISTICS = [
    "densenet121",
    "efficientnet",
    "levit_128s",
    "mobilenetv3",
    "mobileone",
    "regnetx_002",
    "repvgg",
]


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest) -> None:
    package = "transformers" if request.node.callspec.params["name"].startswith("hf_") else "timm"
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def _check(name: str, *overrides: str) -> None:
    result = tried(name, *overrides)
    print(f"{name} {' '.join(overrides)}: {result.verdict}: {result.detail}")
    assert result.verdict in ("right", "refused"), result.detail
    assert len(result.detail.splitlines()) == 1


@pytest.mark.parametrize("name", NETWORKS)
def test_right_or_refused(name: str) -> None:
    _check(name)


@pytest.mark.parametrize("name", WITH_RUNNING_STATISTICS)
def test_right_or_refused_where_validation_reads_running_statistics(name: str) -> None:
    _check(name, "outer.val_batch_norm=running")
