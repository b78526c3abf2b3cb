"""Trackers that a config asks for and that are not installed are refused before anything trains."""

from __future__ import annotations

import importlib.util

from fds_dist.common.faults import Fault, UserError
from fds_dist.tracking.wandb_session import effective_mode


def check_trackers(wandb_mode: str, tensorboard: bool) -> None:
    """Checks what `tracking` asks for.

    Raises:
        UserError: W&B's mode is unknown, or a package is missing that a tracker needs; every fault is named.
    """
    faults: list[Fault] = []
    try:
        mode = effective_mode(wandb_mode)
        if mode != "disabled" and not _is_installed("wandb"):
            expected = "mode: disabled, or pip install wandb"
            faults.append(Fault("tracking.wandb.mode", f"{mode} needs the package wandb, which is missing", expected))
    except UserError as error:
        faults += error.faults
    if tensorboard and not _is_installed("tensorboard"):
        expected = "false, or pip install 'fds-dist[tensorboard]'"
        faults.append(Fault("tracking.tensorboard", "true needs the package tensorboard, which is missing", expected))
    if faults:
        raise UserError(faults)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module of that name is there without a description
        return True
