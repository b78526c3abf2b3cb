"""The top of the report: what the search brought, and the schedule to take away."""

from __future__ import annotations

import base64
import math
from pathlib import Path

import numpy as np
import pytest
from reported_runs import CONFIG, Page, finished_run, record, run_folder

from fds_dist.commands.export import export
from fds_dist.commands.report.contents import RunContents
from fds_dist.commands.report.figures.noise import noise
from fds_dist.commands.report.figures.schedules import constants, result
from fds_dist.commands.report.headline import headline
from fds_dist.commands.report.page import write_report
from fds_dist.commands.report.panels import compose
from fds_dist.commands.report.pointer import readings
from fds_dist.commands.report.reading import read_run
from fds_dist.commands.report.take_away import MOST_ROWS, take_away
from fds_dist.schedule.schedule import Schedule
from fds_dist.tracking.verdict import JudgedCandidate, Verdict


def judged(start: JudgedCandidate, learned: JudgedCandidate) -> RunContents:
    verdict = Verdict.of(2, 200, {"average": learned, "start": start})
    return RunContents(Path("run"), "", {}, {}, [record(0)], {}, verdict)


BAD, GOOD = JudgedCandidate.of([0.8, 1.0], [0.5, 0.6]), JudgedCandidate.of([0.3, 0.5], [0.7, 0.8])
LOST = JudgedCandidate.of([0.8, math.inf], [0.5, None])


@pytest.mark.parametrize(
    ("start", "learned", "words"),
    [
        (BAD, GOOD, "reaches 75.0% validation accuracy; the start reaches 55.0%, on average over 2 fresh"),
        (
            JudgedCandidate.of([0.8], [None]),
            JudgedCandidate.of([0.3], [None]),
            "reaches 0.3 validation loss; the start",
        ),
        (JudgedCandidate.of([0.8], [0.5]), JudgedCandidate.of([0.3], [0.5]), "reaches 0.3 validation loss; the start"),
        (GOOD, BAD, "No learned values did better than the start"),
        (LOST, GOOD, "with the start: diverged on 1 of 2 seeds"),
    ],
)
def test_the_first_sentence_says_what_the_search_brought(
    start: JudgedCandidate, learned: JudgedCandidate, words: str
) -> None:
    assert words in headline(judged(start, learned)).sentence


def test_before_the_judging_the_losses_of_the_search_stand_there() -> None:
    seen = headline(RunContents(Path("run"), "", {}, {}, [record(0, 0.75), record(1, 0.25), record(2, math.nan)], {}))
    assert "outer step 1" in seen.sentence and "not judged" in seen.sentence
    assert [(change.start, change.result) for change in seen.changes] == [("90.0%", "90.0%"), ("0.75", "0.25")]


def test_the_page_holds_the_schedule_in_every_form_of_export(tmp_path: Path) -> None:
    path = finished_run(tmp_path / "run")
    page = Page(write_report([read_run(path)], path / "report", endings=()))
    links = {link["download"]: link["href"] for link in page.of("a") if "download" in link}
    files = {name: base64.b64decode(link.partition("base64,")[2]).decode() for name, link in links.items()}
    forms = {"schedule.json": "json", "schedule.csv": "csv", "schedule.py": "snippet"}
    assert files == {name: export(path, form) for name, form in forms.items()}
    assert files["schedule.py"] in page.words


def test_a_long_table_has_a_row_for_several_steps(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", [record(0)])
    Schedule(10 * MOST_ROWS, {"lr": (0.1, 0.2)}).save(path / "schedule.json")
    taken = take_away(read_run(path))
    assert taken is not None
    labels = [download.label for download in taken.downloads]
    assert labels == ["JSON", "CSV, a row per 10 steps"] and "optimizer" in taken.problem  # no snippet without one
    rows = base64.b64decode(taken.downloads[1].link.partition("base64,")[2]).decode().splitlines()
    assert (len(rows), rows[1], rows[-1]) == (1 + MOST_ROWS, "0,0.1", f"{10 * MOST_ROWS - 10},0.2")


def test_the_result_is_drawn_over_epochs_beside_the_start_and_a_cosine(tmp_path: Path) -> None:
    config = CONFIG + "hyperparameters: {lr: {scale: log}}\n"
    path = run_folder(tmp_path / "run", [record(0, name="lr", hyperparameters={"lr": [0.1] * 3, "x": [0.5]})], config)
    (path / "environment.json").write_text('{"steps_per_epoch": 50}')
    schedule = Schedule(200, {"lr": (0.1, 0.4, 0.2), "x": (0.7,)}, shapes={"lr": "linear"})
    schedule.save(path / "schedule.json")
    run = read_run(path)
    (panel,) = result([run])
    axes = compose([panel]).axes[0]
    assert (axes.get_xlabel(), axes.get_xlim(), axes.get_yscale()) == ("epoch", (0.0, 4.0), "log")
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}
    assert set(lines) == {"start", "result", "cosine, same peak"}
    assert lines["result"][::2].tolist() == [[0.0, 0.1], [2.0, 0.4], [4.0, 0.2]]
    assert np.allclose(lines["cosine, same peak"][[0, 50, 100], 1], [0.4, 0.2, 0.0], atol=1e-12)
    assert constants(run) == {"x": (0.5, 0.7)}


def test_the_pointer_reads_what_is_drawn(tmp_path: Path) -> None:
    run = RunContents(Path("run"), "", {}, {}, [record(step, name="lr") for step in range(3)], {})
    (panel,) = noise([run])
    figure = compose([panel])
    figure.set_dpi(72)
    figure.draw_without_rendering()
    axes, height = figure.axes[0], 72 * figure.get_figheight()
    shown = readings(axes, panel.points, height)
    assert shown is not None
    assert shown["xs"] == [1, 2] and shown["x"] == "outer step"
    assert [(line["name"], line["ys"]) for line in shown["lines"]] == [("lr", [100, 100]), ("momentum", [100, 100])]
    place = axes.transData.transform((2, 100))
    assert abs(shown["px"][1] - place[0]) <= 0.5 and abs(shown["lines"][0]["py"][1] - (height - place[1])) <= 0.5
