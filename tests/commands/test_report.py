"""The report: what the page says is what the folder holds, and it needs nothing from elsewhere."""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import pytest
from reported_runs import CONFIG, HOSTILE, Page, page_of, record, run_folder

from fds_dist.cli import main
from fds_dist.commands import DONE, WRONG_INPUT
from fds_dist.commands.report.contents import RunContents, labels
from fds_dist.commands.report.figures.hypergradients import hypergradients
from fds_dist.commands.report.page import write_report
from fds_dist.commands.report.panels import COLORS, DARK_RAMP, FAINT, INK, RAMP, compose
from fds_dist.commands.report.reading import read_run
from fds_dist.tracking.records import OuterRecord


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


FIGURES = {"schedules", "validation", "paths", "hypergradients", "noise", "step_sizes", "costs", "retraining"}
SECTIONS = ["losses", "retrained", "events", "moves", "derivatives", "machine", "outer-steps", "config", "environment"]


def test_the_page_says_what_the_history_holds(folder: Path) -> None:
    page = Page(folder / "report" / "index.html")
    for fact in ("0.25", "90.0%", "87.5%", "1,000", "not finite", "1 (best)", "600", "6s", "optimizer: adam"):
        assert fact in page.words
    assert [section["aria-labelledby"] for section in page.of("section")] == SECTIONS


def test_the_page_needs_nothing_else_and_is_small(folder: Path) -> None:
    path = folder / "report" / "index.html"
    page = Page(path)
    loaded = [attributes.get(key, "#") for _, attributes in page.elements for key in ("src", "href", "xlink:href")]
    assert [link for link in loaded if not link.startswith(("#", "data:"))] == []
    assert "@import" not in path.read_text()
    assert path.stat().st_size < 3e6
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)  # figures do not take each other's clip paths


def test_a_long_search_over_many_numbers_is_small_too(tmp_path: Path) -> None:
    drawn = Random(0)
    names = [f"lr.group{group}" for group in range(5)]

    def numbers() -> dict[str, list[float]]:
        return {name: [drawn.gauss(0, 1) for _ in range(40)] for name in names}

    records = [
        record(step, hyperparameters=numbers(), hypergradients=numbers(), step_sizes=numbers()) for step in range(60)
    ]
    path = run_folder(tmp_path / "run", records)
    assert page_of(path).stat().st_size < 3e6


def test_the_page_is_told_to_all(folder: Path) -> None:
    page = Page(folder / "report" / "index.html")
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("h1")) == 1 and len(page.of("h2")) == len(page.of("section"))
    assert all(svg["role"] == "img" and len(svg["aria-label"].split()) > 2 for svg in page.of("svg"))
    assert page.of("th") and all(head["scope"] in ("col", "row") for head in page.of("th"))
    text = (folder / "report" / "index.html").read_text()
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    assert all(f"var(--ramp{index})" not in text or text.count(f"--ramp{index}:") == 2 for index in range(8))
    assert INK not in text


@pytest.mark.parametrize(
    "colors", [*((color, color) for color in (*COLORS[:-1], FAINT)), *zip(RAMP, DARK_RAMP, strict=True)]
)
def test_colors_stand_out_on_light_and_on_dark_ground(folder: Path, colors: tuple[str, str]) -> None:
    grounds = re.findall(r"--back: (#\w{6})", (folder / "report" / "index.html").read_text())
    for color, ground in zip(colors, grounds, strict=True):
        assert contrast(color, ground) >= 3  # WCAG 2.1, 1.4.11: parts of graphics


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio of two sRGB colors."""

    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_what_users_wrote_is_text(folder: Path) -> None:
    path = folder / "report" / "index.html"
    text, page = path.read_text(), Page(path)
    assert HOSTILE not in text and len(page.of("script")) == 2
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    policy = next(each["content"] for each in page.of("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert (
        f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" in policy
    )  # no other script runs
    assert HOSTILE in page.words
    assert any(HOSTILE in alt for alt in page.figures)


def test_figures_are_written_for_papers(folder: Path) -> None:
    names = {path.stem for path in (folder / "report").glob("*.png")}
    assert names == {path.stem for path in (folder / "report").glob("*.pdf")}
    assert names == FIGURES
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


def test_what_each_rank_did_is_shown_where_it_was_recorded(tmp_path: Path) -> None:
    measured = {"rank_seconds": [2.0, 1.5, 1.0, 0.5], "rank_peak_bytes": [3 * 2**20, 2**20, 2**20, 7 * 2**20]}
    new = run_folder(tmp_path / "new", [record(0, **measured)])
    old = run_folder(tmp_path / "old", [record(0)])
    pages = [Page(page_of(path)) for path in (new, old)]
    shown = {"time that each rank worked and waited for the others", "peak memory of each rank"}
    assert shown <= set(pages[0].figures) and not shown & set(pages[1].figures)
    assert "7.0 MiB" in pages[0].words and "7.0 MiB" not in pages[1].words


def test_hypergradients_within_the_noise_of_the_replicas_are_hollow() -> None:
    run = RunContents(Path("run"), "", {"mesh": {"replica": 4}}, {}, [], {})
    spread = {"lr": [1.0, 1.0], "momentum": [1.0]}  # of one replica: half of it is the error of the mean of four
    run.records.append(
        record(0, name="lr", hypergradient_spread=spread, hypergradients={"lr": [0.4, -0.6], "momentum": [2.0]})
    )
    axes = compose(hypergradients([run])).axes[0]
    hollow = [np.asarray(marks.get_offsets()).tolist() for marks in axes.collections if not len(marks.get_facecolor())]
    assert [marks for marks in hollow if marks] == [[[0.0, 0.0]]]  # lr[0] alone


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(0)],
        [record(0, hypergradients={"lr.norm": [math.nan, 0.0], "momentum": [math.inf]})],
        [record(0, math.inf), record(1, math.nan, step_sizes={}, hypergradients={})],
        [record(0, name="lr.$x_$")],
    ],
)
def test_a_run_that_has_not_come_far_has_a_page_too(records: list[OuterRecord], tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", records, f"{CONFIG}outer: {{steps: 5}}\n")
    page = Page(page_of(path))
    assert bool(page.figures) == bool(records)
    assert ("No outer step is done yet" in page.words) == (not records)
    assert f"{len(records)} of 5" in page.words


def test_a_folder_that_a_crash_left_is_told_as_far_as_it_goes(tmp_path: Path) -> None:
    path = run_folder(tmp_path / "run", [record(0)])
    (path / "environment.json").write_text('{"weights": 1')
    with (path / "history.jsonl").open("a") as history:
        history.write('{"outer_step": 1, "hor')
    (path / "retrain" / "0").mkdir(parents=True)
    (path / "retrain" / "0" / "history.jsonl").write_text('{"epoch": 0, "test_loss": 0.125}\n{"epoch": 1, "te}')
    page = Page(page_of(path))
    assert "test loss of each retraining over its epochs" in page.figures
    assert "test accuracy (%) of each retraining over its epochs" not in page.figures


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "task: {", r"cannot read .*config\.yaml: .*line 1"),
        ("history.jsonl", '{"outer_step": 0}\n', r"history\.jsonl, line 1 is not a record"),
    ],
)
def test_what_is_damaged_is_named(
    name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_folder(tmp_path / "run", [record(0)])
    (path / name).write_text(content)
    assert main(["report", str(path)]) == WRONG_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_what_a_config_edited_by_hand_does_not_tell_is_left_out(tmp_path: Path) -> None:
    edited = "mesh: {data: two, replica: [1]}\ninner: {epochs: -1, optimizer: [adam]}\nouter: {steps: many}\n"
    path = run_folder(tmp_path / "run", [record(0), record(1, hypergradient_spread={"momentum": [0.1]})], edited)
    seed = path / "retrain" / "0"
    seed.mkdir(parents=True)
    epochs = [{"epoch": 0, "test_loss": "low"}, {"epoch": -1}, {"epoch": 1, "test_loss": None}, {"epoch": 2}, 7]
    (seed / "history.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    assert [epoch["epoch"] for epoch in read_run(path).retrained["0"]] == [1, 2]
    assert Page(page_of(path)).figures


def test_several_runs_stand_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_folder(Path("runs/one"), [record(0), record(1, 0.25, events=["it diverged"])])
    run_folder(Path("runs/two"), [record(0, 0.125)], CONFIG.replace("lenet", "mlp"))
    run_folder(Path("runs/none"), [])
    assert main(["report", "runs/one", "runs/two", "runs/none"]) == DONE
    path = Path("runs/report/index.html")
    assert str(path) in capsys.readouterr().out
    page = Page(path)
    for fact in ("one", "two", "none", "0.25", "0.125", "model.name", "mlp", "it diverged"):
        assert fact in page.words
    titles = [section["aria-labelledby"] for section in page.of("section")]
    assert titles == [
        "losses",
        "results",
        "differences",
        "events",
        "derivatives",
        "machine",
        "config-0",
        "config-1",
        "config-2",
    ]
    assert sum("hypergradient" in alt for alt in page.figures) == 2  # one per run that has begun


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [read_run(run_folder(tmp_path / place / "run", [])) for place in ("here", "there")]
    assert labels(runs) == ["here/run", "there/run"]
    assert labels([runs[0], runs[0]]) == ["run", "run"]


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
    assert main(["report", "runs/digits", "--output", "runs/digits/config.yaml"]) == WRONG_INPUT
    assert "--output" in capsys.readouterr().err.splitlines()[-1]


def test_a_search_ends_by_writing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(
        "task: {name: own_tasks:blobs}\nhyperparameters: {lr: {init: 0.1, step: 0.1}}\n"
        "outer: {optimizer: sign, steps: 1}\nname: run\n"
    )
    assert main(["optimize", "config.yaml"]) == DONE
    assert "report/index.html" in capsys.readouterr().out
    page = Page(Path("runs/run/report/index.html"))
    weights = json.loads(Path("runs/run/environment.json").read_text())["weights"]
    assert f"{weights:,}" in page.words
    assert "peak memory of a rank" in page.words
