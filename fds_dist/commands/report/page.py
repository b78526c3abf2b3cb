"""One self-contained HTML page: figures, style and script are inside, and no other script can run in it."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fds_dist.commands.report.contents import RunContents, labels
from fds_dist.commands.report.drawing import Drawing, drawing, write_files
from fds_dist.commands.report.headline import headline
from fds_dist.commands.report.panels import DARK_RAMP, RAMP, STYLE
from fds_dist.commands.report.sections import Section, sections_of_one, sections_of_several
from fds_dist.commands.report.tables import Link, facts, run_table
from fds_dist.common.access import check_writable
from fds_dist.common.files import write_text_atomic

PAGE = "index.html"
RELOAD = 30
"""Seconds after which the page of a run that goes on loads itself again."""


def write_report(
    runs: Sequence[RunContents], folder: Path, endings: Sequence[str] = ("png", "pdf"), goes_on: bool = False
) -> Path:
    """Writes the page and, beside it, its figures as files with these `endings`; returns the page's path.

    The page shows one run in full, several side by side. A reader sees the old page or the new one, never a part.

    Args:
        goes_on: whether the page is written again later; it then loads itself again every `RELOAD` seconds.

    Raises:
        UserError: the folder cannot be made.
    """
    check_writable(folder, "--output")
    sections, readings = _drawn(runs, folder, endings)
    script = _resource("page.js")
    text = _template().render(
        title=", ".join(labels(runs)),
        style=_style_sheet(),
        script=script,
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        readings=readings,
        sections=sections,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z"),
        reload=RELOAD if goes_on else 0,
        **(_head_of_one(runs[0], folder) if len(runs) == 1 else {"runs": run_table(runs, folder)}),
        count=len(runs),
    )
    write_text_atomic(folder / PAGE, text)
    return folder / PAGE


def _head_of_one(run: RunContents, folder: Path) -> dict[str, Any]:
    beside = run.path.parent / "report" / PAGE
    return {
        "name": run.name,
        "described": _described(run),
        "headline": headline(run),
        "facts": facts(run),
        "beside": quote(os.path.relpath(beside, folder)) if beside.is_file() else "",
    }


def _drawn(
    runs: Sequence[RunContents], folder: Path, endings: Sequence[str]
) -> tuple[list[Section], dict[str, dict[str, Any]]]:
    """The sections with their drawings, and by the drawing's key what the pointer reads in it."""
    sections, readings = [], {}
    for section in sections_of_one(runs[0]) if len(runs) == 1 else sections_of_several(runs, folder):
        for name, figure in section.figures.items():
            panels = _panels(runs, name, section, folder, endings)
            if panels:
                section.drawings.append((figure.caption, panels))
                readings |= {f"{name}{index}": panel.readings for index, panel in enumerate(panels) if panel.readings}
        if not section.is_empty:
            sections.append(section)
    return sections, readings


def _panels(
    runs: Sequence[RunContents], name: str, section: Section, folder: Path, endings: Sequence[str]
) -> list[Drawing]:
    """Draws a figure for the page, and into its files."""
    import matplotlib as mpl

    begun = [run for run in runs if run.records]
    panels = section.figures[name].draw(begun) if begun else []
    if not panels:
        return []
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        write_files(panels, folder, name, endings)
        return [drawing(panel, f"{name}{index}") for index, panel in enumerate(panels)]


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.tests["link"] = lambda value: isinstance(value, Link)
    return environment.from_string(_resource("page.html"))


def _resource(name: str) -> str:
    """The text of a file beside this one."""
    return resources.files("fds_dist.commands.report").joinpath(name).read_text(encoding="utf-8")


def _described(run: RunContents) -> str:
    def name(key: str) -> str:
        return str(run.section(key).get("name", "of its own"))

    started = str(run.environment.get("started", ""))[:16].replace("T", " ")
    words = [f"task {name('task')}", f"model {name('model')}", f"estimator {run.estimator}"]
    return ", ".join([*words, f"started {started}"] if started else words)


def _style_sheet() -> str:
    """`page.css`, and the colors of the buckets on a light and on a dark ground."""
    light, dark = (f":root {{ {_ramp(colors)} }}" for colors in (RAMP, DARK_RAMP))
    return f"\n{_resource('page.css')}{light}\n@media screen and (prefers-color-scheme: dark) {{ {dark} }}\n"


def _ramp(colors: Sequence[str]) -> str:
    return "; ".join(f"--ramp{index}: {color}" for index, color in enumerate(colors))
