"""`fds-dist init`: writes a config that says what its keys mean, and for a task of one's own a file to begin with."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.paths import expand_path
from fds_dist.config import Config, load_config
from fds_dist.config.keys import Key, as_yaml, keys_of
from fds_dist.config.sources import SHIPPED, SUFFIXES, nearest_shipped, shipped_configs

WIDTH = 100
"""Columns of a comment."""

HEADER = "# yaml-language-server: $schema="
"""Begins the line by which editors know what a config may hold."""

INTRODUCTION = """\
{header}{schema}
# A search for schedules; {about}.
#
#   fds-dist check {file}       what it takes: memory and time per rank; trains nothing
#   fds-dist optimize {file}
#
# Keys in comments have the values that stand there. `fds-dist config KEY` says more about each key.
"""

CHOSEN: dict[str, Any] = {
    "task": {"name": "digits", "batch_size": 64, "val_fraction": 0.2},
    "model": {"name": "mlp", "hidden": [64, 64]},
    "inner": {"optimizer": "sgd", "epochs": 10},
    "hyperparameters": {
        "lr": {"init": 0.02, "buckets": 5, "max": 1.0},
        "momentum": {"init": 0.5, "max": 0.99},
        "weight_decay": {"init": 1e-4, "max": 5e-3},
    },
    "outer": {"steps": 4},
}
"""What the config says where it does not only show the defaults."""

MODULE = "my_task"

OWN_TASK = '''\
"""The data, the loss and the network of a search. A config names it as `task: {name: "my_task:task"}`."""

import torch
from torch import nn

from fds_dist import Task, task_from_datasets


def network(seed: int) -> nn.Module:
    """The network with fresh weights. It is made once per outer step, with torch's generator set by `seed`."""
    return nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))


def task(samples: int = 2000, batch_size: int = 50, noise: float = 0.05, seed: int = 0) -> Task:
    """Two spirals. Put datasets or tensors of your own in their place; the parameters are further keys of `task:`."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % 2
    angle = 1 + 6 * torch.rand(samples, generator=draw)
    turned = angle + torch.pi * labels
    points = angle[:, None] / 7 * torch.stack([turned.cos(), turned.sin()], dim=1)
    points += noise * torch.randn(samples, 2, generator=draw)
    train, test = slice(samples // 5, None), slice(samples // 5)
    return task_from_datasets(
        (points[train], labels[train]),
        test=(points[test], labels[test]),
        batch_size=batch_size,
        val_fraction=0.2,
        seed=seed,
        model=network,
        loss=nn.functional.cross_entropy,
    )
'''


def init(name: str | None, shipped: str | None = None, own_task: bool = False) -> list[Path]:
    """Writes a config, and with `own_task` the file my_task.py, which it names; returns the files.

    Args:
        name: of the config; `.yaml` is added. Default: config, or that of the shipped config.
        shipped: the name of a shipped config, which is written in place of the commented one.
        own_task: write a task of one's own in the current folder, too.

    Raises:
        UserError: a file is there already or cannot be written (then none is), or there is no such shipped config.
    """
    if shipped and own_task:
        raise UserError(Fault("--task", "cannot be combined with --from", "one of the two"))
    file = expand_path(name or (f"{Path(shipped).name}.yaml" if shipped else "config.yaml"), "NAME")
    file = file if file.suffix in SUFFIXES else file.with_name(f"{file.name}.yaml")
    texts = {file: _shipped_text(shipped, file) if shipped else config_text(file, own_task)}
    if own_task:
        texts[Path(f"{MODULE}.py")] = OWN_TASK
    if faults := [Fault("NAME", f"{path} is there already", "a new name") for path in texts if path.exists()]:
        raise UserError(faults)
    for path, text in texts.items():
        try:
            content = text.encode()  # before there is a file: a name in another encoding has no UTF-8
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                stream.write(content)
        except OSError as error:
            raise UserError(Fault("NAME", f"{path}: {error.strerror}", "a file to write")) from None
    return list(texts)


def config_text(file: Path, own_task: bool) -> str:
    """A config with the meaning of all keys; those that are not chosen stand in comments with their defaults."""
    chosen = dict(CHOSEN)
    if own_task:
        chosen = {key: value for key, value in chosen.items() if key != "model"}
        chosen["task"] = {"name": f"{MODULE}:task", "samples": 2000, "batch_size": 50}
    about = f"the task is in {MODULE}.py" if own_task else "handwritten digits, some seconds on a core"
    defaults = load_config(chosen).resolved()
    text = INTRODUCTION.format(header=HEADER, schema=_schema(), about=about, file=shlex.quote(str(file)))
    for key in keys_of(Config):
        text += "\n" + "\n".join(_lines(key, defaults.get(key.name), chosen.get(key.name))) + "\n"
    return text


def _lines(key: Key, default: Any, chosen: Any, in_comment: bool = False) -> Iterator[str]:
    """The lines of one key: its meaning, and what is chosen for it, or in a comment its default."""
    name = key.name.rpartition(".")[2]
    mark = "" if in_comment or chosen is not None else "# "
    yield from _comment(key.sentence)
    if key.name == "hyperparameters":
        options = ", ".join(each.name.rpartition(".")[2] for each in key.below if each.name.count(".") == 2)
        yield from _comment(f"Each has the keys {options}; `fds-dist config hyperparameters.lr` explains them.")
        yield from (f"{name}:", *(f"  {each}: {as_yaml(settings)}" for each, settings in (chosen or {}).items()))
    elif isinstance(default, Mapping) and key.below and key.name not in ("task", "model"):
        yield f"{mark}{name}:"
        for each in key.below:
            last = each.name.rpartition(".")[2]
            value = (chosen or {}).get(last)
            lines = _lines(each, default[last], value, in_comment or chosen is None) if last in default else ()
            yield from (f"{mark}  {line}" for line in lines)
    else:
        yield f"{mark}{name}: {as_yaml(default if chosen is None else chosen)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _shipped_text(name: str, file: Path) -> str:
    """The shipped config, with the schema's place on this machine, and `file` in the command lines that it names.

    Raises:
        UserError: there is none of this name.
    """
    configs = shipped_configs()
    if name not in configs:
        similar = nearest_shipped(name)
        expected = f"one of {', '.join(similar or configs)}"
        raise UserError(Fault("--from", f"{name} is not a shipped config", expected, similar[0] if similar else ""))
    lines = configs[name].read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith(HEADER))
    return f"{HEADER}{_schema()}\n{text.replace(f'configs/{name}.yaml', shlex.quote(str(file)))}"


def _schema() -> str:
    """The address of the JSON Schema that came with the package."""
    return (SHIPPED / "schema.json").as_uri()
