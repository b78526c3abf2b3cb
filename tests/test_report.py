"""The report: what the page says is what the folder holds, and it needs nothing from elsewhere."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fds_dist.cli import DONE, WRONG_INPUT, main
from fds_dist.report import read_run, write_report
from fds_dist.tracking.records import OuterRecord

HOSTILE = "<script>alert('x')</script>"
CONFIG = """\
task: {name: digits}
model: {name: lenet}
inner: {optimizer: adam}
mesh: {data: 2, replica: 1}
dtype: float32
"""


def record(outer_step: int, loss: float = 0.5, name: str = "lr.norm", **fields: object) -> OuterRecord:
    values = {name: [0.1 + outer_step, 0.05], "momentum": [0.9]}
    made = OuterRecord(
        outer_step=outer_step,
        horizon=200,
        hyperparameters=values,
        hypergradients={
            key: [(-1.0) ** (outer_step + i) * 10.0**i for i in range(len(row))] for key, row in values.items()
        },
        val_loss=loss,
        val_accuracy=0.9,
        seconds=2.0,
        world_size=4,
        step_sizes={key: [0.1] * len(row) for key, row in values.items()},
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def run_folder(path: Path, records: list[OuterRecord], config: str = CONFIG) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config)
    (path / "environment.json").write_text(json.dumps({"weights": 1000, "device": "cpu", "hostname": HOSTILE}))
    (path / "history.jsonl").write_text("".join(each.to_json() + "\n" for each in records))
    return path


class Page(HTMLParser):
    """Every tag's attributes, and the text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.words = ""
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value:
                self.loaded.append(value)
            if name == "id" and value:
                self.ids.append(value)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with events, a retraining and a name that means harm; its report is written."""
    records = [
        record(0, 0.75, name=f"lr.{HOSTILE}"),
        record(1, 0.25, name=f"lr.{HOSTILE}", events=[f"hypergradients that are not finite {HOSTILE}"]),
        record(2, math.nan, name=f"lr.{HOSTILE}", val_accuracy=None),
    ]
    path = run_folder(tmp_path_factory.mktemp("runs") / "run", records, CONFIG + f"name: {json.dumps(HOSTILE)}\n")
    retrained = path / "retrain" / "0"
    retrained.mkdir(parents=True)
    epochs = [{"epoch": epoch, "test_loss": 0.5, "test_accuracy": 0.875} for epoch in range(2)]
    (retrained / "history.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    write_report([read_run(path)], path / "report")
    return path


def test_the_page_says_what_the_history_holds(folder: Path) -> None:
    page = Page((folder / "report" / "index.html").read_text())
    for fact in ("0.25", "90.0 %", "87.5 %", "1,000", "not finite", "3", "600", "6.0 s"):
        assert fact in page.words
    assert page.tags.count("svg") == 7  # every figure, retraining included


def test_the_page_needs_nothing_else_and_is_small(folder: Path) -> None:
    path = folder / "report" / "index.html"
    page = Page(path.read_text())
    assert [link for link in page.loaded if not link.startswith(("#", "data:"))] == []
    assert "@import" not in path.read_text() and "script" not in page.tags
    assert path.stat().st_size < 3e6
    assert len(set(page.ids)) == len(page.ids)  # figures do not take each other's clip paths


def test_what_users_wrote_is_text(folder: Path) -> None:
    text = (folder / "report" / "index.html").read_text()
    assert "<script" not in text
    assert HOSTILE in Page(text).words


def test_figures_are_written_for_papers(folder: Path) -> None:
    names = {path.stem for path in (folder / "report").glob("*.png")}
    assert names == {path.stem for path in (folder / "report").glob("*.pdf")}
    assert names == {"schedules", "validation", "paths", "hypergradients", "step_sizes", "costs", "retraining"}
    assert all(path.read_bytes()[:4] in (b"\x89PNG", b"%PDF") for path in (folder / "report").glob("*.p*"))


def test_load_and_memory_are_those_of_the_plan(folder: Path) -> None:
    run = read_run(folder)
    plan = run.plan()
    assert plan is not None and len(plan.owned) == 2  # 4 ranks, 2 of them along data
    assert run.tangent_bytes(plan) == [
        # weights and Adam's two moments, half of 1,000 each, of 4 bytes
        len(owned) * 3 * 500 * 4
        for owned in plan.owned
    ]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(0)],
        [record(0, hypergradients={"lr.norm": [math.nan, 0.0], "momentum": [math.inf]})],
        [record(0, math.inf), record(1, math.nan, step_sizes={})],
    ],
)
def test_a_run_that_has_not_come_far_has_a_page_too(records: list[OuterRecord], tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", records)
    page = Page(write_report([read_run(path)], path / "report", endings=()).read_text())
    assert page.tags.count("svg") == (6 if records else 0)
    assert ("No outer step is done yet" in page.words) == (not records)


def test_several_runs_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(Path("runs/one"), [record(0), record(1, 0.25)])
    run_folder(Path("runs/two"), [record(0, 0.125)], CONFIG.replace("lenet", "mlp"))
    assert main(["report", "runs/one", "runs/two"]) == DONE
    path = Path("runs/report/index.html")
    assert str(path) in capsys.readouterr().out
    page = Page(path.read_text())
    for fact in ("one", "two", "0.25", "0.125", "model.name", "mlp"):
        assert fact in page.words
    assert page.tags.count("svg") == 2


def test_what_is_no_run_is_named_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(Path("runs/digits"), [])
    assert main(["report", "runs/digit", "nowhere"]) == WRONG_INPUT
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.search(r"runs/digit is not the folder of a run.*runs/digits", lines[0])
    assert main(["report"]) == WRONG_INPUT


def test_a_search_ends_by_writing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(
        "task: {name: own_tasks:blobs}\nhyperparameters: {lr: {init: 0.1, step: 0.1}}\nouter: {steps: 1}\nname: run\n"
    )
    assert main(["optimize", "config.yaml"]) == DONE
    assert "report/index.html" in capsys.readouterr().out
    words = Page(Path("runs/run/report/index.html").read_text()).words
    weights = json.loads(Path("runs/run/environment.json").read_text())["weights"]
    assert f"{weights:,}" in words
