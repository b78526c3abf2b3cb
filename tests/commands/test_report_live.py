"""The page of a search that goes on: written again, loading itself again, and never in the search's way."""

from __future__ import annotations

from pathlib import Path

import pytest
from reported_runs import CONFIG, record, run_folder, without_files

import fds_dist
from fds_dist.cli import main
from fds_dist.commands import DONE
from fds_dist.commands.report import live
from fds_dist.commands.report.live import LivePage, watch
from fds_dist.storage.run_folder import RunFolder

NOT_JUDGED = "outer: {steps: 3, judge_seeds: 0}\n"


class Clock:
    """A clock that a test sets, and that says how long each writing took."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
        self.now, self.cost, self.written = 0.0, cost, list[bool]()
        monkeypatch.setattr(live, "write_report", self._write)

    def _write(self, runs: object, folder: Path, endings: object, goes_on: bool) -> Path:
        self.now += self.cost
        self.written.append(goes_on)
        return folder

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("cost", [0.1, 3.0, 20.0])
def test_writing_takes_at_most_a_hundredth_of_a_search(
    cost: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = run_folder(tmp_path / "run", [record(0)]), Clock(monkeypatch, cost)
    page = LivePage(RunFolder(path), pytest.fail, clock)
    for _ in range(10_000):
        clock.now += 7.0
        page.outer_step()
    assert len(clock.written) > 30
    assert cost * len(clock.written) <= 0.01 * clock.now + cost  # the first one has no earlier one to go by
    assert all(clock.written)
    page.finish()
    assert clock.written[-1] is False


def test_a_page_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    path, said = run_folder(tmp_path / "run", [record(0)]), list[str]()
    (path / "report").write_text("a file where a folder should be")
    seconds = iter(range(0, 10_000, 1000))
    page = LivePage(RunFolder(path), said.append, lambda: float(next(seconds)))
    page.outer_step()
    page.outer_step()
    assert page.finish() is None
    assert len(said) == 1 and "the report was not written" in said[0]


def test_watching_follows_a_run_to_its_end(tmp_path: Path) -> None:
    path, pages = run_folder(tmp_path / "run", [record(0)], CONFIG + NOT_JUDGED), list[str]()

    def train(seconds: float) -> None:
        pages.append((path / "report" / "index.html").read_text())
        done = len((path / "history.jsonl").read_text().splitlines())
        with (path / "history.jsonl").open("a") as history:
            history.write(record(done, 0.25 / done).to_json() + "\n")

    page = watch([path], path / "report", train)
    assert [f"{count} of 3" in text for count, text in enumerate(pages, 1)] == [True, True]
    assert all("data-reload" in text and 'http-equiv="refresh"' in text for text in pages)
    assert "data-reload" not in page.read_text() and 'http-equiv="refresh"' not in page.read_text()
    assert (path / "report" / "validation.pdf").is_file()


def test_watching_ends_with_control_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_folder(tmp_path / "run", [record(0)], CONFIG + NOT_JUDGED)
    without_files(monkeypatch)

    def interrupt(paths: object, folder: Path) -> Path:
        def press(seconds: float) -> None:
            raise KeyboardInterrupt

        return watch([path], folder, press)

    monkeypatch.setattr("fds_dist.commands.report.command.watch_runs", interrupt)
    assert main(["report", str(path), "--watch"]) == DONE
    assert "report/index.html" in capsys.readouterr().out
    assert "data-reload" not in (path / "report" / "index.html").read_text()


def test_a_search_writes_its_page_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(live, "FIRST", 0.0)
    monkeypatch.setattr(live, "PAUSE", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    Path("config.yaml").write_text(
        "task: {name: own_tasks:blobs}\nhyperparameters: {lr: {init: 0.1, step: 0.1}}\n"
        "outer: {optimizer: sign, steps: 2}\nname: run\n"
    )
    pages: list[str] = []

    class Look(fds_dist.Callback):
        def outer_step(self, record: object) -> None:
            pages.append(Path("runs/run/report/index.html").read_text())

    fds_dist.optimize("config.yaml", callbacks=[Look()])
    last = Path("runs/run/report/index.html").read_text()
    assert ["1 of 2" in text and "data-reload" in text for text in pages] == [True, False]
    assert "data-reload" in pages[1] and "data-reload" not in last
    curves = Path("runs/run/curves.jsonl").read_text().splitlines()
    assert len(curves) == 2 and "training loss" in last
