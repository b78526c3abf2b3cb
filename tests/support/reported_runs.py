"""Folders of runs that a report shows, made up; and a reader of its page."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

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
