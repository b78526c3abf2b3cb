"""One Weights & Biases run. Work continues where wandb is missing, offline or unreachable."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.interruptions import defer_signals
from fds_dist.common.secrets import hide_secrets, is_secret

DEFAULT_MODE = "disabled"
DEFAULT_PROJECT = "fds-dist"
INIT_SECONDS = 5.0
FINISH_SECONDS = 10.0

_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


class WandbSession:
    """A run of wandb, with its files under FOLDER/wandb.

    Where an argument is left at its default, the environment variable that wandb itself reads decides:
    WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_RUN_GROUP, WANDB_JOB_TYPE, WANDB_TAGS, WANDB_RUN_ID.
    Under a sweep's agent, which sets WANDB_SWEEP_ID, it is the run that the agent waits for, and online by default.
    The run's id is stored in FOLDER/wandb_run_id.txt, and a resumed run continues under that id. Before `start`, and
    where the mode is 'disabled' (wandb is not even imported then), every other method does nothing.

    Args:
        mode: 'online', 'offline' or 'disabled'. An online run that cannot start within INIT_SECONDS becomes an
            offline one, with a note that says how to send it later.
        job_type: the kind of run; WANDB_JOB_TYPE or `usual_job_type` where it is None.

    Raises:
        UserError: the mode, or WANDB_MODE, is none of these.
    """

    def __init__(
        self,
        mode: str = DEFAULT_MODE,
        project: str = DEFAULT_PROJECT,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        run_id: str | None = None,
        usual_job_type: str | None = None,
    ) -> None:
        self._mode = effective_mode(mode)
        self._project = os.environ.get("WANDB_PROJECT", project) if project == DEFAULT_PROJECT else project
        self._name = name or os.environ.get("WANDB_NAME")
        self._run_id = run_id or os.environ.get("WANDB_RUN_ID")
        job_type = job_type or os.environ.get("WANDB_JOB_TYPE") or usual_job_type
        # None lets wandb look at its environment variables and settings files.
        self._options = {"entity": entity, "group": group, "job_type": job_type, "tags": list(tags) or None}
        self._run: Any = None
        self.tell: Callable[[str], None] = lambda message: None

    @defer_signals()  # otherwise a signal could leave an open run
    def start(
        self, folder: Path, name: str, config: Any, resumed: bool, step_metrics: Mapping[str, str] | None = None
    ) -> None:
        """Begins the run of `folder`, or continues it.

        Args:
            name: the run's name where neither the config nor the environment names it.
            step_metrics: patterns of metrics to the metric that they are plotted against.

        Raises:
            RuntimeError: wandb is not installed.
        """
        if self._mode == "disabled":
            return
        try:
            import wandb
        except ImportError:
            raise RuntimeError("the wandb package is missing; get it by: pip install wandb") from None
        settings = wandb.Settings(
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            silent=True,
            console="off",  # the terminal is the console tracker's
            save_code=False,
            x_disable_meta=any(map(is_secret, sys.argv)),  # it would hold the command line
        )
        wandb.setup(settings)  # silent from the start: a process without an API key must fail, not ask for one
        folder.mkdir(parents=True, exist_ok=True)
        options = self._options | {
            "project": self._project,
            "name": self._name or name,
            "id": self._id(folder, resumed),
            "dir": str(folder.resolve()),  # wandb's own process may be in another folder
            "config": hide_secrets(config),
            "resume": "allow" if resumed else None,
            "reinit": "create_new",  # leaves a run of the calling program alone
            "settings": settings,
        }
        self._run = self._init(wandb, options)
        _id_file(folder).write_text(f"{self._run.id}\n", encoding="utf-8")
        for metrics, step in (step_metrics or {}).items():
            self._run.define_metric(metrics, step_metric=step)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Logs one row."""
        if self._run is not None:
            self._run.log(dict(metrics))

    def summarize(self, figures: Mapping[str, float | None]) -> None:
        """Sets figures by which runs can be sorted; None is left out."""
        if self._run is not None:
            self._run.summary.update({name: value for name, value in figures.items() if value is not None})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table under `name`."""
        if self._run is None:
            return
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        # A bound table is a plain file of the run. Unbound, `log` would make an artifact of it, for which wandb
        # asks the server (up to 20 s without an answer) and writes to the home directory.
        table.bind_to_run(self._run, name, "final")
        self._run.log({name: table})

    def log_files(self, name: str, kind: str, files: Sequence[Path]) -> None:
        """Logs an artifact of `kind` with those of these files that exist.

        Only online: offline, wandb would copy them to the home directory. They are in the run's folder anyway.
        """
        files = [file for file in files if file.is_file()]
        if self._run is None or self._run.settings.mode != "online" or not files:
            return
        import wandb

        artifact = wandb.Artifact(name, kind)
        for file in files:
            artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    @defer_signals()
    def finish(self, exit_code: int) -> None:
        """Ends the run; `exit_code` other than 0 marks it as failed."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=exit_code)
        except TimeoutError:
            self.tell(
                f"wandb did not take everything in {FINISH_SECONDS:g} s; "
                f"send the rest by: wandb sync {self._run.settings.sync_dir}"
            )

    def _id(self, folder: Path, resumed: bool) -> str | None:
        stored = _id_file(folder)
        if resumed and stored.exists():
            return stored.read_text(encoding="utf-8").strip()
        return self._run_id

    def _init(self, wandb: Any, options: dict[str, Any]) -> Any:
        if self._mode == "offline":
            return wandb.init(mode="offline", **options)
        try:
            return wandb.init(mode="online", **options)
        except Exception as error:
            run = wandb.init(mode="offline", **options)
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self.tell(
                f"wandb cannot go online ({reason}); the run is kept offline. "
                f"Send it later by: wandb sync {run.settings.sync_dir}"
            )
            return run


def effective_mode(mode: str) -> str:
    """'online', 'offline' or 'disabled': `mode`, or WANDB_MODE where that is left at its default.

    Where neither says anything, a job of a sweep is online: its results are what the sweep is for.

    Raises:
        UserError: it is none of these.
    """
    usual = "online" if os.environ.get("WANDB_SWEEP_ID") else ""
    environment = (os.environ.get("WANDB_MODE") or usual) if mode == DEFAULT_MODE else ""
    if (environment or mode) not in _MODES:
        key = "WANDB_MODE" if environment else "tracking.wandb.mode"
        raise UserError(Fault(key, f"{environment or mode!r} is not a mode", "online, offline or disabled"))
    return _MODES[environment or mode]


@contextmanager
def report_failure_to_sweep(rank: int) -> Iterator[None]:
    """Marks the run that a sweep gave to this job as failed when an exception ends the job before its search starts."""
    try:
        yield
    except BaseException:
        run_id = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        if run_id and rank == 0:
            # Whatever happens here, the exception that says why is the first one.
            with suppress(Exception, KeyboardInterrupt), TemporaryDirectory() as folder:
                session = WandbSession()
                session.start(Path(folder), run_id, {}, resumed=False)
                session.finish(exit_code=1)
        elif run_id:
            time.sleep(INIT_SECONDS)  # the launcher ends all ranks when one exits
        raise


def _id_file(folder: Path) -> Path:
    return folder / "wandb_run_id.txt"
