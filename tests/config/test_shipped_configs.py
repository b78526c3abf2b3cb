"""The shipped configs can be read, and the twins say how they are compared."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fds_dist.config import HyperparameterConfig, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "sweeps")
COMPARED = ["cifar", "fashion", "fashion_muon", "lenet", "many"]
"""The twins whose comparisons are figures of the documentation."""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_config_has_no_fault(path: Path) -> None:
    assert load_config(path).hyperparameters


@pytest.mark.parametrize("name", COMPARED)
def test_the_figures_compare_fds_with_what_people_use_over_whole_runs(name: str) -> None:
    config = load_config(CONFIGS / "twins" / f"{name}.yaml")
    assert {"fds", "cosine", "linear", "tpe"} <= set(config.compare.methods)
    assert config.compare.seeds == 3 and config.compare.budget
    lengths = config.inner.steps
    assert isinstance(lengths, list) and len(lengths) == config.outer.steps
    searched = 4 * sum(lengths) / max(lengths)  # by reverse mode; a plain run of a rival has the longest of the lengths
    plain_runs = searched + (1 if config.outer.average > 1 else 0) + 3 * config.outer.judge_seeds
    assert config.estimator == "reverse" and plain_runs <= 20


def test_the_twin_with_many_numbers_has_at_least_sixty() -> None:
    config = load_config(CONFIGS / "twins" / "many.yaml")
    groups = len(config.inner.groups or ())
    learned = {name: each for name, each in config.hyperparameters.items() if isinstance(each, HyperparameterConfig)}
    assert sum(each.buckets * (groups if each.per_group else 1) for each in learned.values()) >= 60
    assert {"lr", "momentum", "weight_decay", "label_smoothing"} == set(learned)


def test_all_of_them_are_in_the_wheel_beside_the_package() -> None:
    """The link `fds_dist/configs` leads to the folder, and `package-data` names each file below it."""
    project, link = CONFIGS.parent, CONFIGS.parent / "fds_dist" / "configs"
    assert link.resolve() == CONFIGS
    listed = re.search(
        r"^fds_dist = (\[[^\]]*\])", (project / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert listed is not None
    shipped = {path for pattern in ast.literal_eval(listed[1]) for path in link.parent.glob(pattern)}
    files = {link / path.relative_to(CONFIGS) for path in CONFIGS.rglob("*") if path.is_file()}
    assert len(files) >= 15 and files <= shipped
