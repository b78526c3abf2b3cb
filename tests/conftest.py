"""What all tests share: one thread per process, plots without a window, skips where the machine cannot run a test."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator

import pytest
from forking import meeting_place

from fds_dist.commands.figure_style import STYLE

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; ranks share the cores
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch reads it once, before the first product on a GPU
meeting_place()  # one for all processes that run tests, which take the variable over


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """All that the tests import stays: to look through it for garbage, here and ever again, takes seconds."""
    gc.disable()
    collected = yield
    gc.freeze()
    gc.enable()
    return collected


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, when asked for by name on a machine that cannot run them, the tests marked `gpu` and `root`."""
    anywhere = os.environ.get("FDS_DIST_DEVICE") == "cpu" and item.path.parent.name == "gpu"  # see gpu_cases
    if item.get_closest_marker("gpu") and not anywhere:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("not the superuser")


LIBRARIES_OWN = ("DS_", "PYTORCH_", "TORCH", "_TORCH", "WANDB_", "HF_", "TOKENIZERS_", "KMP_", "TF_")
"""Beginnings of variables that libraries set, once, for whatever comes after in the process."""


@pytest.fixture(scope="session", autouse=True)
def _figures_have_outlines_of_letters() -> None:
    """Fonts of which a PDF gets a part take half of the time that its figure takes; programs that tests start do so."""
    STYLE["pdf.fonttype"] = 3


@pytest.fixture(autouse=True)
def _environment_stays() -> Iterator[None]:
    """Fails a test after which the environment is another: a rank or a port left behind misleads whatever follows."""
    before = dict(os.environ)
    yield
    after = dict(os.environ)
    changed = {name for name, _ in before.items() ^ after.items() if not name.startswith(LIBRARIES_OWN)}
    changed -= {"PYTEST_CURRENT_TEST"}
    assert not changed, f"the environment was left changed: {sorted(changed)}"
