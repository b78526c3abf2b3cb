"""`fds-dist export`: a snippet that trains as the driver does, and the values as a table and as JSON."""

from __future__ import annotations

import ast
import csv
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import PATIENCE, clean_environment
from problems import conv_bn, image_task
from torch import Tensor, nn

import fds_dist
from fds_dist.cli import main
from fds_dist.commands import DONE, WRONG_INPUT
from fds_dist.commands.definitions import COMMANDS
from fds_dist.commands.export import FORMS, snippet, table
from fds_dist.schedule.schedule import Schedule

HORIZON = 12
GROUPS = {"norm": r"^[14]\.", "rest": ""}

SGD = Schedule(
    HORIZON,
    {"lr": (0.1, 0.3, 0.05), "momentum": (0.0, 0.9), "weight_decay": (0.0, 1e-3, 1e-2)},
    optimizer={"name": "sgd", "nesterov": False},
)
NESTEROV = Schedule(
    HORIZON, {"lr": (0.1, 0.3), "momentum": (0.0, 0.9)}, {"weight_decay": 1e-3}, {"name": "sgd", "nesterov": True}
)
ADAM = Schedule(
    HORIZON,
    {"lr": (0.1, 0.01), "beta1": (0.0, 0.9, 0.5), "eps": (1e-3, 1e-6)},
    {"beta2": 0.99, "weight_decay": 0.1},
    {"name": "adam"},
)
ADAMW = Schedule(HORIZON, ADAM.values, ADAM.fixed, {"name": "adamw"})
GROUPED = Schedule(
    HORIZON,
    {"lr.norm": (0.3, 0.1), "lr.rest": (0.1,), "momentum.norm": (0.0, 0.9), "momentum.rest": (0.0,)},
    {"weight_decay": 1e-3},
    {"name": "sgd", "nesterov": True, "groups": GROUPS},
)
GROUPED_ADAMW = Schedule(
    HORIZON,
    {"lr": (0.01, 0.1), "beta2.norm": (0.99, 0.9), "beta2.rest": (0.999,)},
    {"beta1": 0.9, "eps": 1e-8, "weight_decay": 0.0},
    {"name": "adamw", "groups": GROUPS},
)
CASES = {
    "sgd": (SGD, torch.optim.SGD, {"lr": 1.0}),
    "nesterov": (NESTEROV, torch.optim.SGD, {"lr": 1.0, "momentum": 0.5, "nesterov": True}),
    "adam": (ADAM, torch.optim.Adam, {}),
    "adamw": (ADAMW, torch.optim.AdamW, {}),
    "groups": (GROUPED, torch.optim.SGD, {"lr": 1.0, "momentum": 0.5, "nesterov": True}),
    "groups, adamw": (GROUPED_ADAMW, torch.optim.AdamW, {}),
}


def executed(code: str) -> dict[str, Any]:
    """The names that a snippet defines; it may import the standard library's `re` and torch."""
    imported = {name.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import) for name in node.names}
    assert imported in ({"torch"}, {"re", "torch"})
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(ast.parse(code)))
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace


def trained(model: nn.Module, optimizer: Any, before: Callable[[int], object], steps: int) -> list[Tensor]:
    """All weights after each optimizer step on the same batches; `before(step)` is called before each."""
    task = image_task()
    batches = [batch for _ in range(steps) for batch in task.train_batches(0, 0)][:steps]
    path = []
    for step, (x, y) in enumerate(batches):
        before(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        path.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    return path


def network() -> nn.Module:
    torch.manual_seed(0)
    return conv_bn().double()


@pytest.mark.parametrize("name", CASES)
def test_a_snippet_trains_as_the_driver_bit_for_bit(name: str) -> None:
    schedule, optimizer_class, options = CASES[name]
    steps = HORIZON + 3  # past the horizon the last values stay
    model = network()
    optimizer = optimizer_class(fds_dist.parameter_groups(model, schedule), **options)
    driver = schedule.attach(optimizer, fixed=True)
    expected = trained(model, optimizer, lambda step: step and driver.step(), steps)

    taken, model = executed(snippet(schedule)), network()
    optimizer = taken["make_optimizer"](model)
    found = trained(model, optimizer, lambda step: taken["set_hyperparameters"](optimizer, step), steps)
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[0], found[-1])


@pytest.mark.parametrize("horizon", [2, 12, 50])
def test_a_snippet_has_the_values_of_every_step_also_of_the_loss(horizon: int) -> None:
    schedule = Schedule(
        HORIZON, {"lr": tuple(0.1 / k for k in range(1, 40)), 'my "own"': (0.1, 0.2, 0.3)}, {}, {"name": "sgd"}
    ).stretch(horizon)
    code = snippet(schedule)
    value_at = executed(code)["value_at"]
    for step in range(horizon + 2):
        assert {name: value_at(name, step) for name in schedule.values} == schedule.at(step)
    assert r'extra = {"my \"own\"": value_at("my \"own\"", step)}' in code
    assert max(map(len, code.splitlines())) <= 120


def test_a_snippet_tells_what_its_training_loop_has_to_do() -> None:
    clipped = Schedule(HORIZON, SGD.values, SGD.fixed, {**SGD.optimizer, "clip_gradient": 3.0})
    line = "torch.nn.utils.clip_grad_value_(model.parameters(), 3.0)"
    assert line in snippet(clipped)
    by_norm = Schedule(HORIZON, SGD.values, SGD.fixed, {**clipped.optimizer, "clip_norm": 0.5})
    assert [text for text in snippet(by_norm).splitlines() if "clip_grad" in text] == [
        f"#         {line}  # as when it was learned",
        "#         torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)  # as when it was learned",
    ]
    assert "clip_grad" not in snippet(SGD)
    assert snippet(SGD, "digits/schedule.json").startswith(
        "# A hyperparameter schedule learned by fds-dist: digits/schedule.json.\n"
    )


def test_parameters_that_no_pattern_matches_are_told() -> None:
    grouped = Schedule(4, {"lr.a": (0.1,)}, {}, {"name": "sgd", "groups": {"a": "weight"}})
    with pytest.raises(ValueError, match="no pattern matches bias"):
        executed(snippet(grouped))["make_optimizer"](nn.Linear(2, 2))


@pytest.mark.parametrize("schedule", [SGD, ADAM.stretch(5), GROUPED])
def test_a_table_has_a_row_per_step(schedule: Schedule) -> None:
    rows = list(csv.DictReader(io.StringIO(table(schedule))))
    assert [int(row.pop("step")) for row in rows] == list(range(schedule.horizon))
    assert [{name: float(text) for name, text in row.items()} for row in rows] == [
        schedule.at(step) for step in range(schedule.horizon)
    ]


# --- the command ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs: `digits`, whose best schedule is ADAMW and whose last is SGD, and `stopped`, without any."""
    (tmp_path / "digits").mkdir()
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "config.yaml").write_text("")  # a run that ended within its first outer step
    SGD.save(tmp_path / "digits" / "schedule.json")
    ADAMW.save(tmp_path / "digits" / "schedule_best.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("digits", snippet(SGD, "digits/schedule.json, the result of the search")),
        (
            "--best digits",
            snippet(ADAMW, "digits/schedule_best.json, the values that reached the lowest validation loss"),
        ),
        ("digits --format csv --horizon 3", table(SGD.stretch(3))),
        ("digits --best --format=json --horizon=100", ADAMW.stretch(100).to_json()),
    ],
)
def test_a_schedule_is_printed_or_written(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: str, expected: str
) -> None:
    assert main(["export", *arguments.split()]) == DONE
    assert capfd.readouterr() == (expected, "")
    assert main(["export", *arguments.split(), "--output", "taken"]) == DONE
    assert capfd.readouterr() == ("", "")
    assert (folder / "taken").read_text(encoding="utf-8") == expected


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ("", ["RUN_DIR: is missing; expected the folder of a run"]),
        (
            "digit --horizon 0",
            [
                "RUN_DIR: digit is not the folder of a run: it holds no schedule.json; "
                "expected the folder of a run with a finished outer step; "
                "did you mean digits?",
                "--horizon: 0 is out of range; expected a whole number of at least 1",
            ],
        ),
        (
            "stopped --best",
            ["RUN_DIR: stopped holds no schedule_best.json; expected the folder of a run with a finished outer step"],
        ),
        ("digits horizon=3", ["horizon=3: unexpected argument; expected RUN_DIR and options alone"]),
        ("digits --horizon few", ["argument --horizon: invalid int value: 'few'; see fds-dist export --help"]),
        ("digits --output gone/x", ["--output: gone/x: No such file or directory; expected a file to write"]),
    ],
)
def test_a_line_that_is_wrong(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: str, lines: list[str]
) -> None:
    assert main(["export", *arguments.split()]) == WRONG_INPUT
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [f"fds-dist: {line}" for line in lines]


def test_a_schedule_of_which_no_snippet_can_be_made(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Schedule(4, {"lr.a": (0.1,)}, {}, {"name": "lion"}).save(folder / "stopped" / "schedule.json")
    assert main(["export", "stopped"]) == WRONG_INPUT
    assert capfd.readouterr().err.splitlines() == [
        "fds-dist: schedule: optimizer.name: lion is not in torch.optim, and a snippet needs only torch; "
        "expected fds_dist.make_optimizer, or --format csv or json",
        "fds-dist: schedule: optimizer.groups: None is not valid; expected a pattern for each of a",
    ]
    assert main(["export", "stopped", "--format", "csv"]) == DONE


def test_all_forms_can_be_asked_for() -> None:
    assert list(COMMANDS["export"].options["--format"]["choices"]) == list(FORMS)


def test_a_snippet_from_a_pipe_runs_where_fds_dist_is_not_installed(folder: Path) -> None:
    command = [sys.executable, "-m", "fds_dist", "export", "digits", "--horizon", "4"]
    with Path("taken.py").open("w") as file:
        subprocess.run(command, stdout=file, check=True, timeout=PATIENCE, env=clean_environment())
    script = (
        "import sys; sys.modules['fds_dist'] = None\n"
        "import torch, taken\n"
        "optimizer = taken.make_optimizer(torch.nn.Linear(2, 2))\n"
        "for step in range(taken.HORIZON):\n"
        "    taken.set_hyperparameters(optimizer, step)\n"
        "    print(optimizer.param_groups[0]['lr'])\n"
    )
    pipes: dict[str, Any] = {"capture_output": True, "text": True, "env": clean_environment()}
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE, **pipes)
    assert [float(line) for line in done.stdout.splitlines()] == [SGD.stretch(4).at(step)["lr"] for step in range(4)]


def test_a_reader_that_has_enough_is_no_failure(folder: Path) -> None:
    command = [sys.executable, "-m", "fds_dist", "export", "digits", "--format", "csv", "--horizon", "200000"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=clean_environment(), **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "step,lr,momentum,weight_decay\n"
        process.stdout.close()
        assert (process.stderr.read(), process.wait(PATIENCE)) == ("", DONE)
