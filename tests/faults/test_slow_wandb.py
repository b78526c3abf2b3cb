"""A server of Weights & Biases that is slow: a run waits as long as the config says, and then goes on offline."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wandb_file import logged
from wandb_server import WandbServer

from fds_dist.common.faults import UserError
from fds_dist.config import load_config

RUN = """
import sys, time
from pathlib import Path
from fds_dist.tracking.wandb_session import WandbSession
session = WandbSession("online", init_timeout=float(sys.argv[2]))
session.tell = print
session.start(Path(sys.argv[1]), "run", {}, resumed=False)
session.log({"loss": 1.5})
time.sleep(float(sys.argv[3]))
session.finish(0)
"""


def run(folder: Path, server: WandbServer, init_timeout: float, seconds: float = 0) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("wandb")
    names = [name for name in os.environ if name.startswith("WANDB_")]
    environment = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(init_timeout), str(seconds)],
        env={**environment, "HOME": str(folder / "home"), **server.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,  # never reached: a hung server would show here
    )


def test_a_run_that_is_answered_late_goes_on_offline_and_is_closed_on_the_server(tmp_path: Path) -> None:
    """The server makes the run, and its answer comes after this side has stopped to wait."""
    with WandbServer() as server:
        server.delays["UpsertBucket"] = 6.0  # past the timeout, and short enough for a test
        result = run(tmp_path, server, init_timeout=2, seconds=6)  # it trains for longer than the answer takes
        assert result.returncode == 0, result.stderr
        assert "wandb cannot go online" in result.stdout and "wandb sync" in result.stdout
        assert any(row.get("loss") == 1.5 for row in logged(tmp_path)[1])
        for _ in range(200):  # the last request may still be on its way: 10 s are plenty
            if all(each.exit_code is not None for each in server.runs.values()):
                break
            time.sleep(0.05)
        assert [each.exit_code for each in server.runs.values()] == [0]


def test_a_run_that_is_answered_in_time_is_online(tmp_path: Path) -> None:
    with WandbServer() as server:
        server.delays["UpsertBucket"] = 6.0  # more than the limit of earlier versions, which was final
        result = run(tmp_path, server, init_timeout=120)
        assert (result.returncode, result.stdout) == (0, ""), result.stderr
        (online,) = server.runs.values()
        assert [row["loss"] for row in online.history] == [1.5] and online.exit_code == 0


def test_the_config_says_how_long() -> None:
    config = {"task": {"name": "digits"}, "hyperparameters": {"lr": {"init": 0.1}}}
    assert load_config(config).tracking.wandb.init_timeout == 30.0
    assert load_config(config, ["tracking.wandb.init_timeout=90"]).tracking.wandb.init_timeout == 90.0
    with pytest.raises(UserError, match=r"tracking\.wandb\.init_timeout: 0 is out of range"):
        load_config(config, ["tracking.wandb.init_timeout=0"])
