"""One Weights & Biases run. Work continues if wandb is missing, offline or unreachable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.interruptions import defer_signals
from fds_dist.common.secrets import hide_secret_arguments, hide_secrets

DEFAULT_MODE = "disabled"
DEFAULT_PROJECT = "fds-dist"
INIT_SECONDS = 30.0
SWEEP_SECONDS = 5.0
"""What a job that ends before its search starts has to tell its sweep so."""

FINISH_SECONDS = 10.0
OFFLINE_SECONDS = 90.0
"""For the start of an offline run, which waits for processes of this machine alone; wandb's own default."""

_CLOSE = """
import json, sys, wandb
told = json.loads(sys.argv[1])
limits = dict.fromkeys(("init_timeout", "finish_timeout"), told["seconds"])
settings = wandb.Settings(**limits, silent=True, console="off", x_disable_meta=True)
run = wandb.init(mode="online", resume="must", dir=told["folder"], settings=settings, **told["run"])
run.finish(exit_code=told["exit_code"])
"""
"""Ends a run that is open on the server; `resume: must` makes no new one."""

_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}


class WandbSession:
    """A run of wandb, with its files under FOLDER/wandb.

    An argument that is left at its default is read from the environment variable that wandb itself uses:
    WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_RUN_GROUP, WANDB_JOB_TYPE, WANDB_TAGS, WANDB_RUN_ID.
    Under a sweep's agent, which sets WANDB_SWEEP_ID, it is the run that the agent waits for, and online by default.
    The run's id is stored in FOLDER/wandb_run_id.txt, and a resumed run continues under that id. Before `start`, and in
    the mode 'disabled' (which does not even import wandb), every other method does nothing.

    Args:
        mode: 'online', 'offline' or 'disabled'. An online run that cannot start within `init_timeout` seconds
            becomes an offline one, with a note that says how to send it later.
        job_type: the kind of run; None: WANDB_JOB_TYPE or `usual_job_type`.
        group: None: WANDB_RUN_GROUP or, where no sweep groups its runs itself, `usual_group`.

    Raises:
        UserError: the mode, or WANDB_MODE, is unknown.
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
        init_timeout: float = INIT_SECONDS,
        run_id: str | None = None,
        usual_job_type: str | None = None,
        usual_group: str | None = None,
    ) -> None:
        self._mode = effective_mode(mode)
        self._project = os.environ.get("WANDB_PROJECT", project) if project == DEFAULT_PROJECT else project
        self._name = name or os.environ.get("WANDB_NAME")
        self._run_id = run_id or os.environ.get("WANDB_RUN_ID")
        job_type = job_type or os.environ.get("WANDB_JOB_TYPE") or usual_job_type
        if not os.environ.get("WANDB_SWEEP_ID"):
            group = group or os.environ.get("WANDB_RUN_GROUP") or usual_group
        # With None, wandb reads its environment variables and settings files.
        self._options = {"entity": entity, "group": group, "job_type": job_type, "tags": list(tags) or None}
        self._init_timeout = init_timeout
        self._run: Any = None
        self._left_open: dict[str, Any] = {}
        """The options of an online run that began too late: the server may have it."""
        self.tell: Callable[[str], None] = lambda message: None

    @defer_signals()  # otherwise a signal could leave an open run
    def start(
        self, folder: Path, name: str, config: Any, resumed: bool, step_metrics: Mapping[str, str] | None = None
    ) -> None:
        """Begins the run of `folder`, or continues it.

        Args:
            name: the run's name if neither the config nor the environment sets one.
            step_metrics: pattern of metrics → the metric against which they are plotted.

        Raises:
            RuntimeError: wandb is not installed.
        """
        if self._mode == "disabled":
            return
        try:
            import wandb
        except ImportError:
            raise RuntimeError("the wandb package is missing; install it by: pip install wandb") from None
        settings = wandb.Settings(
            init_timeout=self._init_timeout,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            silent=True,
            console="off",  # the terminal is the console tracker's
            save_code=False,
            x_disable_meta=hide_secret_arguments(sys.argv) != sys.argv,  # the metadata hold the command line
        )
        wandb.setup(settings)  # silent from the start: without an API key wandb must fail, not ask for one
        folder.mkdir(parents=True, exist_ok=True)
        options = self._options | {
            "project": self._project,
            "name": self._name or name,
            "id": self._id(folder, resumed),
            "dir": str(folder.resolve()),  # wandb's service process may be in another folder
            "config": hide_secrets(config),
            "resume": "allow" if resumed else None,
            "reinit": "create_new",  # does not touch a run of the calling program
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

    def summarize(self, figures: Mapping[str, float | str | None]) -> None:
        """Sets the run's summary figures, by which runs can be sorted. None is left out."""
        if self._run is not None:
            self._run.summary.update({name: value for name, value in figures.items() if value is not None})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table under `name`."""
        if self._run is None:
            return
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        # A bound table is a plain file of the run. `log` would turn an unbound one into an artifact, for which wandb
        # asks the server (up to 20 s without an answer) and writes to the home directory.
        table.bind_to_run(self._run, name, "final")
        self._run.log({name: table})

    def log_picture(self, png: bytes, name: str, metrics: Mapping[str, Any]) -> None:
        """Logs one row with a picture under `name`: a plain file of the run."""
        if self._run is None:
            return
        import wandb
        from PIL import Image

        self._run.log({**metrics, name: wandb.Image(Image.open(BytesIO(png)))})

    def log_page(self, name: str, page: Path) -> None:
        """Logs a self-contained HTML page, which the run then shows: a plain file of it."""
        if self._run is None:
            return
        import wandb

        self._run.log({name: wandb.Html(page.read_text(encoding="utf-8"), inject=False)})

    def open_log(self) -> TextIO | None:
        """The file that the run shows as its log, open for writing; None without a run."""
        if self._run is None:
            return None
        path = Path(self._run.dir) / "output.log"
        log = path.open("a", encoding="utf-8")
        self._run.save(str(path), base_path=str(path.parent), policy="live")
        return log

    def log_files(self, name: str, kind: str, files: Sequence[Path]) -> None:
        """Logs an artifact of `kind` with those of `files` that exist.

        It does so only online: offline, wandb would copy the files to the home directory.
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
                f"wandb did not receive everything within {FINISH_SECONDS:g} s; "
                f"send the rest by: wandb sync {self._run.settings.sync_dir}"
            )
        if self._left_open:
            self._close_on_server(exit_code)

    def _close_on_server(self, exit_code: int) -> None:
        """Ends the run that the server has, if it has one: it began there after this side had stopped to wait.

        In a process of its own, since the service of this one keeps the run that could not begin.
        """
        names = ("id", "project", "entity")
        same = {name: self._left_open[name] for name in names}
        environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
        with suppress(OSError, subprocess.SubprocessError), TemporaryDirectory() as folder:
            told = json.dumps({"run": same, "exit_code": exit_code, "folder": folder, "seconds": FINISH_SECONDS})
            command, limit = [sys.executable, "-c", _CLOSE, told], 3 * FINISH_SECONDS
            subprocess.run(command, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=limit)

    def _id(self, folder: Path, resumed: bool) -> str | None:
        stored = _id_file(folder)
        if resumed and stored.exists():
            return stored.read_text(encoding="utf-8").strip()
        return self._run_id

    def _init(self, wandb: Any, options: dict[str, Any]) -> Any:
        if self._mode == "offline":
            return wandb.init(mode="offline", **options)
        settings = options["settings"].model_copy()  # in which wandb writes the run's id
        online = options | {"id": options["id"] or _new_id(), "settings": settings}
        try:
            return wandb.init(mode="online", **online)
        except Exception as error:
            run = self._offline(wandb, options)
            self._left_open = online
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self.tell(
                f"wandb cannot go online ({reason}); the run stays offline. "
                f"Send it later by: wandb sync {run.settings.sync_dir}"
            )
            return run

    def _offline(self, wandb: Any, options: dict[str, Any]) -> Any:
        """The run in the place of one that could not go online; under another id, where wandb still holds that one."""
        options = options | {"settings": options["settings"].model_copy(update={"init_timeout": OFFLINE_SECONDS})}
        try:
            return wandb.init(mode="offline", **options)
        except Exception:
            return wandb.init(mode="offline", **options | {"id": _new_id(), "resume": None})


def _new_id() -> str:
    return uuid.uuid4().hex[:8]


def effective_mode(mode: str) -> str:
    """'online', 'offline' or 'disabled': `mode`, or WANDB_MODE if `mode` is the default.

    If neither is set, a job of a sweep is online, because the sweep needs its results.

    Raises:
        UserError: the mode is unknown.
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
            # An error here must not replace the exception that ended the job.
            with suppress(Exception, KeyboardInterrupt), TemporaryDirectory() as folder:
                session = WandbSession(init_timeout=SWEEP_SECONDS)
                session.start(Path(folder), run_id, {}, resumed=False)
                session.finish(exit_code=1)
        elif run_id:
            time.sleep(SWEEP_SECONDS)  # the launcher ends all ranks when one exits
        raise


def _id_file(folder: Path) -> Path:
    return folder / "wandb_run_id.txt"
