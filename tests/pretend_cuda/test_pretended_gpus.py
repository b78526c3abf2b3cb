"""On a GPU that is not there: tensors are on the right device, a step waits for nothing, and its kernels are few."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import SUPPORT, clean_environment
from pretended_scenarios import COMMANDS, KERNELS, RETRAININGS, SEARCHES

COMPILER = shutil.which("g++")
AT_THE_END = 2
"""Waits after the last step, whatever the number of tangents: for the validation's figures, and for hypergradients."""

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no g++"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has hooks for CUDA of its own"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pretend_cuda.cpp` for this PyTorch."""
    source, made = Path(__file__).parent / "pretend_cuda.cpp", tmp_path_factory.mktemp("cuda") / "pretend_cuda.so"
    include = Path(torch.__file__).parent / "include"
    subprocess.run(
        [str(COMPILER), "-O0", "-std=c++20", "-shared", "-fPIC", f"-I{include}", str(source), "-o", str(made)],
        check=True,
        timeout=300,
    )
    return made


def run(library: Path, pattern: str) -> dict[str, Any]:
    """What the scenarios with these names saw; all in one process, which loads the library before torch."""
    command = [sys.executable, str(SUPPORT / "pretended_main.py"), str(library), pattern]
    environment = clean_environment(CUDA_VISIBLE_DEVICES="0", OMP_NUM_THREADS="1")
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    return {told.pop("name"): told for told in map(json.loads, ended.stdout.splitlines())}


@pytest.fixture(scope="module")
def told(library: Path) -> dict[str, Any]:
    return run(library, "^(?!slow)")


@pytest.fixture(scope="module")
def slow(library: Path) -> dict[str, Any]:
    return run(library, "^slow")


def among(names: Iterable[str]) -> list[Any]:
    """Names of scenarios as parameters, those that take longer with their marker."""
    return [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("slow"), id=name) for name in names]


def total(seen: list[dict[str, Any]], kind: str) -> dict[str, int]:
    """What there was of a kind in several stretches."""
    return dict(sum((Counter(stretch[kind]) for stretch in seen), Counter()))


@pytest.fixture
def seen_in(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """name of a scenario → what it saw; fails with its error where it has one."""

    def seen(name: str) -> Any:
        told = request.getfixturevalue("slow" if name.startswith("slow") else "told")[name]
        assert told.get("error", "") == ""
        return told

    return seen


@pytest.mark.parametrize("name", among(SEARCHES))
def test_a_step_waits_for_nothing_and_its_copies_are_not_waited_for(seen_in: Callable[[str], Any], name: str) -> None:
    seen = seen_in(name)
    assert len(seen["steps"]) == 3
    assert total(seen["steps"], "waits") == {}
    assert total(seen["steps"], "blocking") == {}
    assert total([seen["first"], *seen["steps"]], "misplaced") == {}
    assert all(sum(stretch["kernels"].values()) > 10 for stretch in seen["steps"])
    assert sum(seen["end"]["waits"].values()) <= AT_THE_END
    assert seen["end"]["blocking"] == {}


def test_the_numbers_of_an_epoch_are_sent_once(seen_in: Callable[[str], Any]) -> None:
    """Two steps are an epoch: what comes from the task is sent in the first of them, the order and the numbers of the
    augmentation."""

    def files(stretch: dict[str, Any]) -> list[str]:
        places = [line.split(" at ")[1].split(":")[0] for line in total([stretch], "sent")]
        return sorted(place for place in places if place.startswith("tasks/"))

    second, third, fourth = map(files, seen_in("augmented images")["steps"])
    assert (second, third, fourth) == ([], ["tasks/augmentation.py", "tasks/sources.py"], [])


def test_what_waits_is_seen(seen_in: Callable[[str], Any]) -> None:
    """A task that reads its loss, makes a constant on the host and asks where a condition holds."""
    seen = seen_in("clumsy")
    waits, blocking = (total(seen["steps"], kind) for kind in ("waits", "blocking"))
    assert sum(waits.values()) >= 6
    assert sum(blocking.values()) >= 3


@pytest.mark.parametrize("name", among(RETRAININGS))
def test_retraining_waits_for_what_it_shows_and_writes(seen_in: Callable[[str], Any], name: str) -> None:
    seen = seen_in(name)["end"]
    reported = ("commands/retrain/seed_run.py", "tasks/metrics.py", "commands/retrain/ddp.py")
    assert [line for line in seen["waits"] if not line.split(" at ")[1].startswith(reported)] == []
    assert [line for line in seen["blocking"] if "common/modules.py" not in line] == []  # the network, once


def test_a_copy_of_a_network_keeps_to_the_mode_of_its_tensors(seen_in: Callable[[str], Any]) -> None:
    seen_in("copied")


@pytest.mark.parametrize("name", among(COMMANDS))
def test_commands_keep_to_the_device(seen_in: Callable[[str], Any], name: str) -> None:
    seen_in(name)


@pytest.mark.parametrize("name", among(KERNELS))
def test_kernels_of_a_step_are_few(seen_in: Callable[[str], Any], name: str) -> None:
    step, most = seen_in(name)["steps"][-1], KERNELS[name][1]
    assert sum(step["kernels"].values()) <= most
    assert total([step], "waits") == total([step], "blocking") == {}
