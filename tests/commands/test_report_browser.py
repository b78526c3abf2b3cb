"""The report in a real browser: no message, both widths, both color schemes, pointer, keyboard, copy and download."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CONTRASTS, Browser, chromium
from reported_runs import finished_run, record

from fds_dist.commands.report import page as page_module
from fds_dist.commands.report.page import write_report
from fds_dist.commands.report.reading import read_run

pytestmark = pytest.mark.browser

PATIENCE = 60.0
"""Seconds that a busy machine may take for what a browser does at once."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = finished_run(tmp_path_factory.mktemp("runs") / "run")
    write_report([read_run(path)], path / "report", endings=())
    return path


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return run / "report" / "index.html"


def wait_for(condition: Callable[[], Any]) -> Any:
    """The first answer that is not false."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.1)
    pytest.fail("it did not come")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_is_readable_and_silent(width: int, scheme: str, page: Path, browser: Browser) -> None:
    browser.open(page, width, scheme)
    assert browser.ask("return document.body.scrollHeight") < (2600 if width == 1280 else 4200)  # a few screens, folded
    assert browser.ask(CONTRASTS, 4.5) == []
    browser.unfold()
    assert browser.ask("return document.documentElement.scrollWidth") <= width
    assert browser.ask(CONTRASTS, 4.5) == []
    assert browser.messages == []


def test_several_runs_lead_to_their_pages(run: Path, page: Path, browser: Browser, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other run #2")
    write_report([read_run(other)], other / "report", endings=())
    side_by_side = write_report([read_run(run), read_run(other)], tmp_path / "both", endings=())
    browser.open(side_by_side, 390)
    assert browser.ask("return document.documentElement.scrollWidth") <= 390
    browser.find("tbody tr:nth-child(2) a").click()
    assert wait_for(lambda: browser.driver.current_url == (other / "report" / "index.html").resolve().as_uri())
    assert browser.messages == []


def test_values_show_under_the_pointer_and_by_arrow_keys(page: Path, browser: Browser) -> None:
    from selenium.webdriver import ActionChains, Keys  # pyright: ignore[reportMissingImports]

    browser.open(page)
    picture, values = browser.find("svg[data-readings]"), browser.find("#values")
    assert not values.is_displayed()
    browser.ask("arguments[0].scrollIntoView({block: 'center'})", picture)
    ActionChains(browser.driver).move_to_element(picture).perform()
    lines = wait_for(lambda: values.text.splitlines())
    assert lines[0].startswith("training step")
    assert {line.partition(":")[0] for line in lines[1:]} == {"result", "start", "cosine, same peak"}
    picture.send_keys(Keys.ESCAPE)
    assert not values.is_displayed()
    for _ in range(101):
        picture.send_keys(Keys.ARROW_LEFT)
    assert values.text.splitlines()[0] == "training step 0" and "result: 0.4" in values.text
    assert browser.messages == []


def test_the_keyboard_reaches_everything(page: Path, browser: Browser) -> None:
    from selenium.webdriver import ActionChains, Keys  # pyright: ignore[reportMissingImports]

    browser.open(page)
    browser.find("details summary").send_keys(Keys.ENTER)
    wanted = browser.ask("return document.querySelectorAll('summary, a[download], button, .scroll').length")
    reached = set()
    browser.ask("document.activeElement.blur(); scrollTo(0, 0)")
    browser.driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
    names = "summary, a[download], button, .scroll"
    script = f"const all = [...document.querySelectorAll({names!r})]; return all.indexOf(document.activeElement)"
    for _ in range(60):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        reached.add(browser.ask(script))
    folded = browser.ask(
        f"return [...document.querySelectorAll({names!r})].flatMap((each, at) => (each.checkVisibility() ? [] : [at]))"
    )
    assert reached - {-1} == set(range(wanted)) - set(folded)


def test_the_schedule_is_copied_and_downloaded(run: Path, page: Path, browser: Browser, tmp_path: Path) -> None:
    browser.open(page)
    to = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", to)
    browser.find("a[download='schedule.json']").click()
    file = tmp_path / "schedule.json"
    assert wait_for(lambda: file.is_file() and file.read_text()) == (run / "schedule.json").read_text()
    browser.find("details summary").click()
    button = browser.find("button")
    button.click()
    assert wait_for(lambda: button.text != "Copy") and button.text == "Copied"
    code = browser.find("#code").text
    compile(code, "schedule.py", "exec")
    assert browser.ask("return getSelection().toString()").strip() == code.strip()


def test_a_page_of_a_search_that_goes_on_loads_itself_again(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished_run(tmp_path / "run")
    monkeypatch.setattr(page_module, "RELOAD", 1)
    page = write_report([read_run(path)], path / "report", endings=(), goes_on=True)
    browser.open(page)
    browser.find(".folded summary").click()
    with (path / "history.jsonl").open("a") as history:
        history.write(record(4, events=["a new event"]).to_json() + "\n")
    write_report([read_run(path)], path / "report", endings=())
    assert wait_for(lambda: browser.ask("return document.body.textContent.includes('a new event')"))
    assert browser.ask("return document.querySelector('.folded details').open")
    assert "data-reload" not in browser.driver.page_source
    assert browser.messages == []
