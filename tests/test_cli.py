"""The command line: its exit status, and what it prints for a person's mistakes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import own_tasks
import pytest
from forked_python import forked_python
from launching import PATIENCE, clean_environment
from reported_runs import without_files

from fds_dist.cli import main

Run = Callable[..., tuple[int, list[str], list[str]]]

CONFIG = """
task: {name: "own_tasks:blobs"}
inner: {epochs: 2}
hyperparameters: {lr: {init: 0.1, step: 0.05, buckets: 2}}
outer: {optimizer: sign, steps: 2}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command line in a folder with a config.yaml; gives its status and its lines on both streams."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        capfd.readouterr()
        status = main(arguments)
        captured = capfd.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def faults(run: Run, *arguments: str) -> list[str]:
    """What a command line is told that must be wrong: status 2, nothing else printed, nothing written."""
    before = sorted(Path.cwd().rglob("*"))
    status, out, err = run(*arguments)
    assert (status, out) == (2, [])
    assert all(line.startswith("fds-dist: ") for line in err)
    assert sorted(path for path in Path.cwd().rglob("*") if "__pycache__" not in path.parts) == before
    return [line.removeprefix("fds-dist: ") for line in err]


# --- the command line itself ---


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--resume", "the following arguments are required: COMMAND; see fds-dist --help"),
        (
            "optimise config.yaml",
            "optimise: unknown command; expected one of optimize, check, ... did you mean optimize?",
        ),
        ("check", "CONFIG: is missing; expected a YAML file (or --resume RUN_DIR, to continue a run)"),
        ("check seed=1", "CONFIG: is missing; expected a YAML file (or --resume RUN_DIR, to continue a run)"),
        ("check config.yml", "config.yml: no such file; did you mean config.yaml?"),
        ("check configs/a.yaml", "configs/a.yaml: there is no folder configs; expected the path of a YAML file"),
        ("check config.yaml --worldsize=2", "--worldsize=2: unknown option; did you mean --world-size?"),
        ("check config.yaml --world-size two", "argument --world-size: invalid int value: 'two'; see fds-dist check -"),
        ("check config.yaml --world-size 0", "--world-size: 0 is out of range; expected a whole number of at least 1"),
        ("verify config.yaml --steps 1", "--steps: 1 is out of range; expected at least 2, the number of buckets"),
        ("optimize config.yaml seed", "seed: is not an override; expected key=value, such as outer.steps=3"),
        ("check config.yaml --outer.stepz=3", "outer.stepz: unknown key; did you mean outer.steps?"),
        ("check config.yaml --outer.steps", "--outer.steps: has no value; expected outer.steps=VALUE"),
        ("check config.yaml --outer.steps --world-size 2", "--outer.steps: has no value; expected outer.steps=VALUE"),
        ("export runs/a seed=1", "seed=1: unexpected argument; expected RUN_DIR and options alone"),
        ("export runs/a --outer.steps=1", "--outer.steps=1: unknown option"),
        ("sweep", "FILE: is missing; expected a sweep file, or ENTITY/PROJECT/SWEEP_ID"),
        ("sweep mine --local --check", "--check: cannot be combined with --local; expected one of the two"),
        (
            "sweep a/b/c --local",
            "--local: a/b/c is not a sweep file; expected a file such as sweep.yaml",
        ),
        (
            "optimize config.yaml --resume .",
            "--resume: cannot be combined with CONFIG; expected the folder of a run, and overrides",
        ),
        (
            "optimize --resume runs/gone",
            "--resume: runs/gone is not the folder of a run: it holds no config.yaml; "
            "expected OUTPUT_DIR/NAME of an earlier run",
        ),
    ],
)
def test_a_command_line_that_is_wrong(run: Run, arguments: str, line: str) -> None:
    (told,) = faults(run, *arguments.split())
    start, _, end = line.partition(" ... ")
    assert told.startswith(start)
    assert told.endswith(end)


def test_a_run_of_another_name_is_suggested(run: Run) -> None:
    Path("runs/digits-1").mkdir(parents=True)
    Path("runs/digits-1/config.yaml").write_text(CONFIG)
    (told,) = faults(run, "optimize", "--resume", "runs/digit-1")
    assert told.endswith("did you mean runs/digits-1?")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--local_rank=0", "check", "config.yaml", "--world-size", "2", "outer.steps=3"],  # as deepspeed starts it
        ["check", "config.yaml", "outer.steps=3", "--world-size=2", "--local-rank=0"],
        ["check", "--world-size", "2", "config.yaml", "outer.steps=9", "outer.steps=3"],  # the last one holds
        ["check", "config.yaml", "--outer.steps=3", "--world-size", "2"],  # as options, as other programs have them
        ["check", "--outer.steps", "3", "config.yaml", "--world-size=2", "--seed", "1"],
    ],
)
def test_overrides_may_stand_anywhere(run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, err) == (0, [])
    assert out[0].startswith("Plan  3 outer steps of 8 inner steps on 2 ranks (cpu)")


def test_help_is_fast_and_both_entries_are_one_program() -> None:
    script = Path(sys.executable).with_name("fds-dist")
    without_torch = "import sys; sys.modules['torch'] = None; from fds_dist.cli import main; main(['--help'])"
    commands = [[str(script), "--help"], [sys.executable, "-m", "fds_dist", "--help"]]
    commands.append([sys.executable, "-c", without_torch])
    texts = {
        subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment()).stdout
        for command in commands
    }
    (text,) = texts
    for word in ("optimize", "check", "verify", "Exit status: 0 done, 2 wrong input, 1 anything else."):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("command", "key"), [("optimize", "inner.epochs"), ("retrain", "mixed_precision")])
def test_the_help_of_a_command_lists_its_keys_with_their_meaning(
    command: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    meaning = lines[lines.index(f"  {key}") + 1]
    assert meaning.startswith("      ") and len(meaning.split()) > 3
    assert max(map(len, lines)) <= 80


# --- paths ---


def test_home_and_variables_are_filled_in_wherever_a_path_stands(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ELSEWHERE", str(tmp_path / "elsewhere"))
    without_files(monkeypatch)
    Path("elsewhere").mkdir()
    Path("config.yaml").rename("elsewhere/config.yaml")
    made = ("optimize", "$ELSEWHERE/config.yaml", "output_dir=~/runs", "name=a", "outer.steps=1")
    assert run(*made)[0] == 0
    assert Path("home/runs/a/schedule.json").is_file()
    assert run("optimize", "--resume", "~/runs/a")[0] == 0
    assert run("export", "~/runs/a", "--output", "${ELSEWHERE}/schedule.py")[0] == 0
    assert run("report", "$HOME/runs/a", "--output", "~/report")[0] == 0
    assert {path.name for path in Path("elsewhere").iterdir()} == {"config.yaml", "schedule.py"}
    assert {path.name for path in tmp_path.iterdir()} >= {"home", "elsewhere"}
    assert not [path for path in tmp_path.iterdir() if path.name[0] in "~$"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("check $NOWHERE/config.yaml", "$NOWHERE/config.yaml: there is no environment variable NOWHERE"),
        ("optimize --resume $NOWHERE/a", "--resume: $NOWHERE/a: there is no environment variable NOWHERE"),
        ("retrain ${NOWHERE}/a", "RUN_DIR: ${NOWHERE}/a: there is no environment variable NOWHERE"),
        ("export ~nobody-here/a", "RUN_DIR: ~nobody-here/a: there is no home folder of ~nobody-here"),
        ("check config.yaml output_dir=${oc.env:HOME}/a", "output_dir: ${oc.env:HOME}/a: there is no environment "),
        (
            "check config.yaml task={name:text,path:$NOWHERE/a}",
            "task.path: $NOWHERE/a: there is no environment variable NOWHERE",
        ),
    ],
)
def test_a_path_that_cannot_be_filled_in_is_one_line(run: Run, arguments: str, line: str) -> None:
    (told,) = faults(run, *arguments.replace(":text", ": text").replace("path:", "path: ").split(maxsplit=2))
    assert told.startswith(line)
    assert told.endswith("expected a path such as runs, ~/runs or $HOME/runs")


# --- faults in a config ---


def test_everything_that_is_wrong_is_told_at_once(run: Run) -> None:
    told = faults(
        run,
        *("optimize", "config.yaml", "hyperparameters.lr.buckets=0", "hyperparameters.momentum={init: 1, step: 0.1}"),
        "hyperparameters.weight_decay={init: 0, step: -1}",
        *("inner.epoch=3", "outer.steps=few", "mesh.tangent=3", "model={name: lent}", "task.chanels=2", "device=cuda"),
    )
    assert told == [
        "inner.epoch: unknown key; did you mean inner.epochs?",
        "hyperparameters.lr.buckets: 0 is out of range; expected a whole number of at least 1",
        "hyperparameters.weight_decay.step: -1 is out of range; expected a number above 0",
        "outer.steps: 'few' is text; expected a whole number of at least 1",
        "hyperparameters.momentum.init: 1 is out of range; expected a number of at least 0 and below 1",
        "device: cuda: PyTorch finds no GPU here; expected auto or cpu",
        "task.chanels: unknown key; did you mean task.channels?",
        *[line for line in told if line.startswith("model.name: 'lent' is unknown")],
        "mesh.tangent: 3 does not fit 1 rank; expected auto or 1, or a launch with 3 ranks",
    ]
    assert any(line.endswith("did you mean lenet?") for line in told)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("hyperparameters.lr.buckets=9", "9 is more buckets than inner steps: the shortest horizon has 8"),
        ("hyperparameters.beta1=0.9", "unknown hyperparameter; expected lr, momentum, weight_decay (of sgd)"),
        ("hyperparameters.lr=0.1", "nothing is learned, all are fixed numbers; expected at least one like lr: {init"),
        (
            "hyperparameters.momentum=1.0",
            "hyperparameters.momentum: 1 is out of range; expected a number of at least 0",
        ),
        ("task.name=own_task:blobs", "task.name: there is no module own_task"),
        ("task.name=own_tasks:blob", "task.name: module own_tasks has no 'blob'"),
        ("tracking.wandb.mode=on", "tracking.wandb.mode: 'on' is not valid; expected online, offline or disabled"),
        ("output_dir=config.yaml", "output_dir: cannot create a folder in config.yaml: "),
        ("name=a/b", "name: "),
        ("dtype=float16", "dtype: 'float16' is not valid; expected float32 or float64"),
    ],
)
def test_a_config_that_is_wrong(run: Run, override: str, line: str) -> None:
    (told,) = faults(run, "optimize", "config.yaml", override)
    assert line in told


def test_verify_tells_the_users_faults_and_no_others(run: Run) -> None:
    assert faults(run, "verify", "config.yaml", "tangents=5", "dtype=float16") == [
        "tangents: 5 is a whole number; expected a mapping",
        "dtype: 'float16' is not valid; expected float32 or float64; did you mean float64?",
    ]


# --- faults in a task of one's own ---


def line_of(text: str) -> int:
    """The line of own_tasks.py that holds `text`."""
    lines = Path(own_tasks.__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


PLANTED = f"raised ValueError: planted at {own_tasks.__file__}:{line_of('raise ValueError(')}"
SCALAR = "expected a differentiable scalar tensor, the mean over the batch"
SHORT = "task.train_batches: train_batches(outer_step=0, epoch=0)"
ON_BATCH = "on output [8, 3] float32 and target [8] int64"

TOLD: dict[str, str | list[str]] = {
    "train_batches raises": f"{SHORT} {PLANTED}",
    "train_batches gives nothing": f"{SHORT} raised TypeError: 'NoneType' object is not iterable",
    "train_batches is short": f"{SHORT} has 1 batches; expected at least steps_per_epoch = 4",
    "train_batches gives mappings": (  # passed as keywords
        "model: the network raised TypeError: Sequential.forward() got an unexpected keyword argument 'x' on inputs "
        "{x: [8, 1, 6, 6] float32, y: [8] int64}"
    ),
    "train_batches gives triples": (  # passed as positions
        "model: the network raised TypeError: Sequential.forward() takes 2 positional arguments but 4 were given on "
        "inputs ([8, 1, 6, 6] float32, [8] int64, int)"
    ),
    "train_batches gives arrays": (
        "task.train_batches: gave a tuple of ndarray, Tensor: inputs is of the type ndarray; expected pairs (x, y) of "
        "tensors, or mappings, sequences or other pytrees of tensors"
    ),
    "val_batches is empty": "task.val_batches: val_batches(outer_step=0) gave no batch; expected at least one",
    "val_batches raises": f"task.val_batches: val_batches(outer_step=0) {PLANTED}",
    "loss is a vector": f"task.loss: loss(output, target) returned [8] float32 {ON_BATCH}; {SCALAR}",
    "loss is a float": f"task.loss: loss(output, target) returned a float {ON_BATCH}; {SCALAR}",
    "loss is detached": (
        f"task.loss: loss(output, target) returned a number cut off from the weights (by detach, item or argmax?); "
        f"{SCALAR}"
    ),
    "loss does not fit": (
        "task.loss: loss(output, target) raised ValueError: Expected input batch_size (7) to match target batch_size "
        f"(8). at {own_tasks.__file__}:{line_of('loss does not fit')} {ON_BATCH}"
    ),
    "loss raises": f"task.loss: loss(output, target) {PLANTED} {ON_BATCH}",
    "val_loss is a vector": f"task.val_loss: val_loss(output, target) returned [8] float32 {ON_BATCH}; {SCALAR}",
    "build_model raises": f"model: building the network {PLANTED}",
    "build_model gives nothing": "model: build_model returned a NoneType; expected a torch.nn.Module",
    "the network does not fit": (
        "model: the network raised RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x36 and 5x3) at "
        f"{own_tasks.__file__}:{line_of('self.linear(x')} on inputs [8, 1, 6, 6] float32"
    ),
}


@pytest.mark.parametrize("how", TOLD)
def test_a_mistake_in_ones_own_task_is_one_line_before_any_training(run: Run, how: str) -> None:
    told = faults(run, "optimize", "config.yaml", "task.name=own_tasks:wrong", f"task.how={how}")
    assert told == [TOLD[how]]


def test_a_function_that_raises_is_named_with_its_line(run: Run) -> None:
    (told,) = faults(run, "check", "config.yaml", "task.name=own_tasks:unfinished")
    assert told == f"task.name: own_tasks:unfinished {PLANTED}"


def test_batches_that_run_out_during_training_end_the_run_with_a_line(run: Run) -> None:
    how = ("task.name=own_tasks:wrong", "task.how=train_batches runs dry")
    status, out, err = run("optimize", "config.yaml", *how, "name=run")
    assert status == 2
    later = SHORT.replace("epoch=0", "epoch=1")
    assert err == [f"fds-dist: {later} gave 1 batches; expected at least steps_per_epoch = 4"]
    assert "failed; message: task.train_batches: " in out[-2]
    assert out[-1].endswith("optimize --resume runs/run")
    assert "Traceback" not in "".join(out + err)


# --- how a run ends ---


def test_a_run_that_diverges_ends_with_status_1_and_advice(run: Run) -> None:
    status, out, err = run("optimize", "config.yaml", "hyperparameters.lr.init=1e30", "outer.nonfinite_patience=1")
    assert status == 1
    (line,) = err
    assert line.startswith("fds-dist: 1 outer steps in a row") or line.startswith("fds-dist: 1 outer step")
    assert "lower the learning rate" in line
    assert any(line.startswith("failed") for line in out)


# Slow: CI has SIGTERM in the interrupted sweep, whose handler is the same.
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [str(forked_python(tmp_path / "bin")), "-m", "fds_dist", "optimize", "config.yaml", "inner.epochs=5000"]
    command += ["name=run", "tangents.compile=off"]  # such a long search would be compiled first
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=clean_environment(), **pipes)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert "outer step 0, inner step" in lines[2]
        process.send_signal(number)
        time.sleep(0.05)
        process.send_signal(number)  # as from a launcher that passes on what its ranks got already
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "")
    stopped, next_step = out.splitlines()[-2:]
    assert stopped.startswith("interrupted; message: stopped in outer step 0; ")
    assert re.fullmatch(r"to continue: .*fds.dist optimize --resume runs/run", next_step)
