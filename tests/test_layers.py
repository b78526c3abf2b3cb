"""Imports go downward only, and files stay short: the package's shape, checked from its source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fds_dist"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = {
    0: "faults interruptions blame registry randomness flat groups share live_memory config vision",
    1: "hyperparameters schedule schedule_driver inner outer tangents tasks models",
    2: "distributed checkpoint checkpoint_folders tracking run_folder",
    3: "engine",
    4: "verification cost step_measurement tables compare report bench noise retrain export",
    5: "build next_steps run api studies sweep commands cli __init__ __main__",
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}

FORBIDDEN = {1: ("torch.distributed", "wandb", "logging")}
"""By layer: libraries it must not use. The mathematics knows tensors; no process group, no tracker, no logging."""

WITHOUT_TORCH = ("faults", "interruptions", "registry", "groups", "config", "tracking", "schedule", "export")
"""Loadable where torch is not installed: a learned schedule is, and so are `--help` and a config's faults."""

MAX_LINES = 400


def top_name(path: Path) -> str:
    """`fds_dist/inner/sgd.py` -> "inner", `fds_dist/cli.py` -> "cli"."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def used_modules(source: str) -> Iterator[str]:
    """The dotted names that a module imports, wherever it does, or reaches through an imported library's attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or "")
            else:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def imported_name(module: str) -> str:
    """`fds_dist.inner.sgd.init` -> "inner"; "__init__" where an object of the package itself is meant."""
    name = module.split(".")[1] if "." in module else "__init__"
    return name if name in LAYER_OF or (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() else "__init__"


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer_faults(name: str, source: str) -> list[str]:
    """What the source of a module below the top-level `name` does against the rules; empty where all is well."""
    if name not in LAYER_OF:
        return [f"fds_dist.{name} is in no layer: add it to LAYERS in tests/test_layers.py"]
    layer = LAYER_OF[name]
    allowed = (0, 2) if layer == 2 else range(layer + 1)
    faults = []
    for module in used_modules(source):
        if module.startswith("."):
            faults.append(f"relative import {module}: write fds_dist.…")
        elif within(module, "fds_dist"):
            target = imported_name(module)
            if target not in LAYER_OF:
                faults.append(f"fds_dist.{target} is in no layer: add it to LAYERS in tests/test_layers.py")
            elif LAYER_OF[target] not in allowed:
                faults.append(f"{module}: layer {layer} must not import layer {LAYER_OF[target]}")
        elif any(within(module, library) for library in FORBIDDEN.get(layer, ())):
            faults.append(f"{module}: not in layer {layer}")
        elif within(module, "torch") and name in WITHOUT_TORCH:
            faults.append(f"{module}: fds_dist.{name} has to load without torch")
    return faults


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_keeps_to_its_layer_and_its_length(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert layer_faults(top_name(path), source) == []
    assert len(source.splitlines()) <= MAX_LINES, "split the file: a module has one subject"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("config", "def f():\n    from fds_dist.engine import run"),
        ("config", "import fds_dist.schedule"),
        ("config", "from fds_dist import optimize"),
        ("tracking", "from fds_dist.schedule import Schedule"),
        ("inner", "from . import sgd"),
        ("inner", "from torch import distributed"),
        ("inner", "import torch\n\ntorch.distributed.barrier()"),
        ("tasks", "import logging"),
        ("schedule", "import torch.nn"),
        ("unheard_of", ""),
    ],
)
def test_breach_is_found(name: str, source: str) -> None:
    assert len(layer_faults(name, source)) >= 1


def test_lower_and_equal_layers_may_be_imported() -> None:
    assert layer_faults("outer", "from fds_dist.hyperparameters import Space\nfrom fds_dist import registry") == []
    assert layer_faults("run_folder", "import logging\nfrom fds_dist.checkpoint import save") == []


def test_light_modules_load_without_torch() -> None:
    light = [
        ".".join(("fds_dist", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in MODULES
        if top_name(path) in WITHOUT_TORCH
    ]
    assert "fds_dist.schedule" in light
    script = "import sys; sys.modules['torch'] = None\nfor name in sys.argv[1:]: __import__(name)"
    loaded = subprocess.run(
        [sys.executable, "-c", script, *light], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert loaded.returncode == 0, loaded.stderr
