"""Folders of runs that a report shows, made up; and a reader of its page."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fds_dist.commands.report.page import write_report
from fds_dist.commands.report.reading import read_run
from fds_dist.common.records import to_line
from fds_dist.schedule.schedule import Schedule
from fds_dist.tracking.curves import Curve
from fds_dist.tracking.records import OuterRecord
from fds_dist.tracking.verdict import JudgedCandidate, Verdict

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


def page_of(path: Path) -> Path:
    """The page of a run's report without its figures as files, which take twice as long as the page."""
    return write_report([read_run(path)], path / "report", endings=())


def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on reports are pages alone: see `page_of`."""
    monkeypatch.setattr("fds_dist.commands.report.page.write_files", lambda *_: None)


class Page(HTMLParser):
    """Every tag with its attributes, and the text outside of styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words = ""
        self.feed(path.read_text())

    def of(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each such tag."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def figures(self) -> list[str]:
        """What those are told who cannot see the figures."""
        return [svg["aria-label"] for svg in self.of("svg")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words += data


def finished_run(path: Path) -> Path:
    """A run that has everything that a page can show, with names that mean harm."""
    records = [
        record(
            step,
            0.75 / (1 + step),
            name=f"lr.{HOSTILE}",
            events=["it diverged"] if step == 2 else [],
            rank_seconds=[2.0, 1.5, 1.0, 0.5],
            rank_peak_bytes=[3 * 2**20, 2**20, 2**20, 7 * 2**20],
            hypergradient_spread={f"lr.{HOSTILE}": [1.0, 2.0], "momentum": [0.1]},
        )
        for step in range(4)
    ]
    run_folder(path, records, CONFIG + f"name: {json.dumps(HOSTILE)}\nouter: {{steps: 4}}\n")
    curves = [
        Curve(step, 200, [*range(20, 201, 20)], [1 / (step + each) for each in range(1, 11)]) for step in range(4)
    ]
    (path / "curves.jsonl").write_text("".join(to_line(curve) + "\n" for curve in curves))
    values = {f"lr.{HOSTILE}": (0.4, 0.05), "momentum": (0.9,)}
    groups = {HOSTILE: "bias"}
    schedule = Schedule(200, values, optimizer={"name": "sgd", "groups": groups}, shapes={f"lr.{HOSTILE}": "linear"})
    for name in ("schedule.json", "schedule_average.json", "schedule_last.json"):
        schedule.save(path / name)
    judged = {
        name: JudgedCandidate.of([loss, loss + 0.1], [0.9, 0.92])
        for name, loss in (("average", 0.2), ("last", 0.3), ("start", 0.9))
    }
    (path / "judged.json").write_text(Verdict.of(2, 200, judged).to_json())
    retrained = path / "retrain" / "0"
    retrained.mkdir(parents=True)
    epochs = [{"epoch": epoch, "test_loss": 0.5, "test_accuracy": 0.875} for epoch in range(2)]
    (retrained / "history.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    return path
