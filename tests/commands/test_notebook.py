"""What a notebook shows of results: tables whose texts are escaped, a plot, and the progress of a search."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import fds_dist
from fds_dist.commands.bench.report import BenchReport
from fds_dist.common.console import default_console, is_live
from fds_dist.tracking.console import ConsoleTracker
from fds_dist.tracking.records import InnerBlock, OuterRecord, RunEnd, RunStart

HOSTILE = "<b>[bold]&"
SCHEDULE = fds_dist.Schedule(
    100, {HOSTILE: (0.1, 0.05), "weights": ((1.0, 2.0), (3.0, 4.0))}, {"momentum": 0.9}, {"name": "sgd"}
)


def text_of(html: str) -> str:
    """The text of a `<pre>`, and nothing but spans around it."""
    assert set(re.findall(r"</?(\w+)", html)) <= {"pre", "span"}
    return re.sub(r"<[^>]+>", "", html)


def record(number: int) -> OuterRecord:
    return OuterRecord(number, 100, {HOSTILE: [0.1, 0.05]}, {HOSTILE: [1.0, 2.0]}, 0.25, None, 1.5, 1)


def test_a_schedule_is_shown_as_a_table_of_escaped_texts() -> None:
    text = text_of(SCHEDULE._repr_html_())
    assert "schedule over 100 steps of sgd" in text
    assert re.search(r"&lt;b&gt;\[bold\]&amp; +2 +0.1  0.05", text)
    assert re.search(r"weights +2 +1,2  3,4", text)
    assert re.search(r"momentum +fixed +0.9", text)
    long = fds_dist.Schedule(100, {"lr": tuple(float(step) for step in range(100))})
    assert "4  5  …  94  95" in text_of(long._repr_html_())


def test_a_run_is_shown_as_a_row_per_outer_step() -> None:
    run = fds_dist.Run(Path("runs/<i>"), None, None, [record(0), record(1)], {})
    text = text_of(run._repr_html_())
    assert "runs/&lt;i&gt;: 2 outer steps" in text
    assert re.search(r"1 +100 +0.25 +- +1.5s +0.1 … 0.05", text)
    assert "0 outer steps" in text_of(fds_dist.Run(Path("runs/x"), None, None, [], {})._repr_html_())


def test_reports_are_shown_as_they_are_printed() -> None:
    config: dict[str, Any] = {
        "task": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [4]},
        "hyperparameters": {"lr": {"init": 0.1, "step": 0.05, "buckets": 2}},
        "consistency": {"witness": "off"},
    }
    checked = text_of(fds_dist.check(config, world_size=2)._repr_html_())
    assert "Plan" in checked and "lr[0]" in checked and "output_dir" not in checked
    verified = text_of(fds_dist.verify(config, steps=2)._repr_html_())
    assert "lr[1]" in verified and "verified" in verified
    report = BenchReport(1.2, 2.0, None, 1.0, {"float32": 1e-6}, 0.01, 2, 10, HOSTILE, 5, 1, "cpu", "2.13")
    assert "step_cost" in text_of(report._repr_html_())


def test_a_schedule_is_plotted_on_axes_to_change() -> None:
    ax = SCHEDULE.plot()
    legend = ax.get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [HOSTILE, "weights[0]", "weights[1]"]
    line = ax.get_lines()[0]
    assert (list(line.get_xdata())[-1], float(line.get_ydata()[49]), float(line.get_ydata()[50])) == (100, 0.1, 0.05)  # type: ignore[index]
    assert ax.get_yscale() == "log"
    other = fds_dist.Schedule(5000, {"momentum": (0.0, 0.5)})
    assert other.plot(ax) is ax
    assert max(len(line.get_xdata()) for line in ax.get_lines()) <= 1001  # type: ignore[arg-type]


def test_matplotlib_is_imported_for_a_plot_alone() -> None:
    code = (
        "import sys, fds_dist; fds_dist.Schedule(2, {'lr': (0.1,)})._repr_html_(); "
        "print({'torch', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class Shown(list[Any]):
    """Stands in for IPython's `display`: keeps what a notebook is given."""

    def __call__(self, *things: Any) -> None:
        self.extend(things)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What rich displays, where it takes this process for a notebook's without ipywidgets."""
    shown = Shown()
    display = types.ModuleType("IPython.display")
    display.display = shown  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    return shown


@pytest.mark.parametrize("widgets", [False, True])
def test_a_notebook_is_live_where_it_has_widgets(
    notebook: Shown, widgets: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fds_dist.common.console.find_spec", lambda name: widgets or None)
    console = Console()
    assert is_live(console) is widgets
    assert default_console().width == console.width
    if widgets:
        monkeypatch.setattr("fds_dist.tracking.console.Live", NoLive)
    tracker = ConsoleTracker(console, clock=iter(range(100)).__next__)
    tracker.start(RunStart(tmp_path, {}, 1, 0, 2, 1, "cpu", False))
    for step in range(3):
        tracker.inner(InnerBlock(0, range(step, step + 1), 3, 1, 0.5, {HOSTILE: 0.1}))
    tracker.outer(record(0))
    tracker.finish(RunEnd("finished", "", {HOSTILE: [0.1]}, 0, 0.25, None, tmp_path))
    texts = "".join(thing.text for thing in notebook)
    assert ("outer step 0 done" in texts) is not widgets
    assert ("hyperparameters" in texts) is widgets
    assert "finished" in texts
    assert all("<b>" not in thing.html for thing in notebook)
    assert NoLive.refreshed == (4 if widgets else 0)  # at each block, and above the row of the outer step


class NoLive:
    """Stands in for rich's live display, which needs ipywidgets here; counts how often it is drawn."""

    refreshed = 0

    def __init__(self, get_renderable: Any, console: Console, transient: bool, **drawing: Any) -> None:
        assert not drawing["auto_refresh"]
        self.get_renderable = get_renderable
        NoLive.refreshed = 0

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def refresh(self) -> None:
        Console(file=io.StringIO(), force_jupyter=False).print(self.get_renderable())
        NoLive.refreshed += 1
