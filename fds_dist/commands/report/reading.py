"""Reads a run's folder for a report; missing or unfinished files are left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fds_dist.commands.report.contents import RunContents, mapping
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import parse_json, read_json
from fds_dist.common.records import FloatOrNan, NotNaN, Whole, from_line
from fds_dist.common.secrets import hide_secrets
from fds_dist.config.yaml_text import dump_yaml
from fds_dist.schedule.schedule import Schedule
from fds_dist.storage.run_folder import CANDIDATES, RESULT, RunFolder
from fds_dist.tracking.curves import read_curves
from fds_dist.tracking.history import read_history
from fds_dist.tracking.verdict import read_verdict

CONFIG_WIDTH = 110
"""Columns of a config in a page."""


def read_run(path: Path) -> RunContents:
    """The run in the folder `path`.

    Raises:
        UserError: it is not the folder of a run (the message names the nearest one), or a file in it is damaged.
    """
    folder = RunFolder(path).checked()
    text, config = _config(folder.config)
    return RunContents(
        path=path,
        config_text=text,
        config=config,
        environment=_json_object(folder.environment),
        records=read_history(folder.history) if folder.history.is_file() else [],
        retrained=_retrained(path / "retrain") or _retrained(path / "retrain-best"),
        verdict=read_verdict(folder.verdict),
        curves=read_curves(folder.curves),
        schedules={
            name: Schedule.load(folder.candidate(name))
            for name in (RESULT, *CANDIDATES)
            if folder.candidate(name).is_file()
        },
    )


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    """The config as text and as plain values, without secrets: a page is made to be shared."""
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(Fault("RUN_DIR", f"cannot read {path}: {reason}", "a run's config.yaml")) from None
    shown = hide_secrets(config)
    return text if shown == config else dump_yaml(shown, CONFIG_WIDTH), mapping(shown)


def _json_object(path: Path) -> dict[str, Any]:
    try:
        return mapping(read_json(path))
    except (OSError, ValueError):
        return {}


def _retrained(folder: Path) -> dict[str, list[dict[str, Any]]]:
    by_seed = {}
    for path in sorted(folder.glob("*/history.jsonl"), key=lambda path: path.parent.name):
        lines = path.read_bytes().splitlines() if path.is_file() else []
        epochs = map(_epoch, lines)
        by_seed[path.parent.name] = [epoch for epoch in epochs if isinstance(epoch.get("epoch"), int)]
    return {seed: epochs for seed, epochs in by_seed.items() if epochs}


@dataclass(frozen=True)
class _Epoch:
    """What a page shows of an epoch of a retraining."""

    epoch: Whole
    test_loss: FloatOrNan = math.nan
    test_accuracy: NotNaN | None = None


def _epoch(line: bytes) -> dict[str, Any]:
    """A record; empty where the line is none, such as a torn last line."""
    try:
        from_line(_Epoch, line)
        return mapping(parse_json(line))
    except ValueError:
        return {}
