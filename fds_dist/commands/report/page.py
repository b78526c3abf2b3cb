"""One self-contained HTML page: its figures are inside, in the page's own colors, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from fds_dist.commands.report import figures
from fds_dist.commands.report.contents import RunContents, labels
from fds_dist.commands.report.hypergradients import hypergradients
from fds_dist.commands.report.panels import DARK_RAMP, INK, RAMP, SIZE, STYLE, Panel, compose
from fds_dist.commands.report.tables import (
    cards,
    config_differences,
    event_table,
    outer_step_table,
    run_table,
    table,
    verdict_table,
)
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.files import write_text_atomic
from fds_dist.common.words import ABSENT

PAGE = "index.html"
ZOOM = 1.3
"""How much larger panels are on the page than in print: their letters then have the size of the page's text."""


class Figure(NamedTuple):
    """A figure with its heading and what a reader has to know."""

    draw: figures.Draw
    title: str
    caption: str


VALIDATION = Figure(
    figures.validation, "Validation", "After each outer step's training run. A ring marks the lowest loss."
)
SIGNS = (
    "d validation loss / d value, summed over a bucket's steps. Up, positive: the loss rises with the value, and the "
    "outer optimizer lowers it. Down, negative: it raises it. The larger the triangle, the larger the number (by its "
    "logarithm); hollow, unsure: smaller than its standard error over the replicas."
)
ONE_RUN = {
    "schedules": Figure(figures.schedules, "Schedules", "The values that each outer step trained with."),
    "validation": VALIDATION,
    "paths": Figure(
        figures.paths,
        "Values over the outer steps",
        "A line per bucket or knot, with its number: 0 is the first of the horizon.",
    ),
    "hypergradients": Figure(hypergradients, "Hypergradients and their signs", SIGNS),
    "step_sizes": Figure(
        figures.step_sizes,
        "Step sizes",
        "The outer optimizer's, after each outer step, on the scale on which it moves the value.",
    ),
    "costs": Figure(
        figures.costs,
        "Time, load and memory",
        "Time and peak memory are measured. By the plan: plain steps (a training step without tangents is one) and the "
        "memory of the tangents.",
    ),
    "retraining": Figure(figures.retraining, "Retraining", "On all training data, with the learned schedule."),
}
SEVERAL_RUNS = {
    "validation": VALIDATION,
    "schedules": Figure(figures.schedules, "Best schedules", "The values that reached each run's lowest loss."),
    "hypergradients": Figure(hypergradients, "Hypergradients and their signs", SIGNS),
    "costs": Figure(figures.costs, "Time", ""),
}


def write_report(runs: Sequence[RunContents], folder: Path, endings: Sequence[str] = ("png", "pdf")) -> Path:
    """Writes the page and, beside it, its figures as files with these `endings`; returns the page's path.

    The page shows one run in full, several side by side.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot make the folder {folder}: {error.strerror}"
        raise UserError(Fault("--output", problem, "a folder to write in")) from None
    drawn = _drawn(runs, folder, endings)
    body = _one(runs[0], drawn) if len(runs) == 1 else _several(runs, drawn)
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(', '.join(labels(runs)))}</title>"
        f'<link rel="icon" href="data:,"><style>{_style_sheet()}</style></head>\n'
        f"<body><main>\n{body}\n</main></body></html>\n"
    )
    write_text_atomic(folder / PAGE, text)
    return folder / PAGE


def _drawn(runs: Sequence[RunContents], folder: Path, endings: Sequence[str]) -> list[str]:
    """Draws the figures, writes them as files, and returns them as sections of the page."""
    import matplotlib as mpl

    begun = [run for run in runs if run.records]
    sections = []
    for name, figure in (ONE_RUN if len(runs) == 1 else SEVERAL_RUNS).items():
        panels = figure.draw(begun) if begun else []
        if not panels:
            continue
        with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
            if endings:
                drawing = compose(panels)
                drawing.draw_without_rendering()  # computes the layout once for all files
                drawing.set_layout_engine("none")
                for ending in endings:
                    drawing.savefig(folder / f"{name}.{ending}", dpi=300, facecolor="white")
            drawings = "".join(_svg(panel, f"{name}{index}") for index, panel in enumerate(panels))
        caption = f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
        kind = "panels wide" if any(map(_is_wide, panels)) else "panels"
        figure_text = f'<figure>{caption}<div class="{kind}">{drawings}</div></figure>'
        sections.append(_section(figure.title, figure_text, name))
    return sections


def _svg(panel: Panel, key: str) -> str:
    """The panel as inline SVG in the colors of the page's text; its ids begin with `key`."""
    wide = _is_wide(panel)
    figure = compose([panel], 1.0 if wide else ZOOM)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, dpi=100, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    for index, color in enumerate(RAMP):
        text = text.replace(color, f"var(--ramp{index})")
    text = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{key}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Paths are precise enough to a hundredth of a point.
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    points = figure.get_figwidth() * 72
    box = f' style="width:{1.45 * points:.0f}px;min-width:{1.25 * points:.0f}px"' if wide else ""
    drawing = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        lambda tag: f'<svg role="img" aria-label="{escape(panel.alt)}" {tag[1]}{box}>',
        text,
        count=1,
    )
    return f'<div class="panel">{drawing}</div>'


def _is_wide(panel: Panel) -> bool:
    """Whether the panel has a width of its own on the page instead of a column's."""
    return panel.size[0] > SIZE[0]


def _section(title: str, content: str, key: str) -> str:
    """A part of the page under a heading; empty where there is no content."""
    if not content:
        return ""
    return f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(title)}</h2>\n{content}</section>'


def _one(run: RunContents, drawn: Sequence[str]) -> str:
    environment = [(key, _plain(value)) for key, value in run.environment.items()]
    parts = [
        f'<header><h1>{escape(run.name)}</h1>\n<p class="sub">{escape(_described(run))}</p></header>',
        cards(run),
        "" if run.records else "<p>No outer step is done yet.</p>",
        _section("The result", verdict_table(run), "result"),
        *drawn,
        _section("Events", event_table([run]), "events"),
        _section("Outer steps", outer_step_table(run), "outer-steps"),
        _folded("Config", f"<pre>{escape(run.config_text)}</pre>"),
        _folded("Environment", table(("", ""), environment)) if environment else "",
    ]
    return "\n".join(filter(None, parts))


def _several(runs: Sequence[RunContents], drawn: Sequence[str]) -> str:
    configs = zip(labels(runs), runs, strict=True)
    parts = [
        f"<header><h1>{len(runs)} runs side by side</h1></header>",
        run_table(runs),
        *drawn,
        _section("Events", event_table(runs), "events"),
        _section("Where their configs differ", config_differences(runs), "configs"),
        *(_folded(f"Config of {label}", f"<pre>{escape(run.config_text)}</pre>") for label, run in configs),
    ]
    return "\n".join(filter(None, parts))


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return ABSENT if value is None else str(value)


def _described(run: RunContents) -> str:
    def name(key: str) -> str:
        return str(run.section(key).get("name", "of its own"))

    started = str(run.environment.get("started", ""))[:16].replace("T", " ")
    words = [f"task {name('task')}", f"model {name('model')}", f"estimator {run.estimator}"]
    return ", ".join([*words, f"started {started}"] if started else words)


def _style_sheet() -> str:
    """`page.css`, and the colors of the buckets on a light and on a dark ground."""
    css = resources.files("fds_dist.commands.report").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = (f":root {{ {_ramp(colors)} }}" for colors in (RAMP, DARK_RAMP))
    return f"\n{css}{light}\n@media screen and (prefers-color-scheme: dark) {{ {dark} }}\n"


def _ramp(colors: Sequence[str]) -> str:
    return "; ".join(f"--ramp{index}: {color}" for index, color in enumerate(colors))
