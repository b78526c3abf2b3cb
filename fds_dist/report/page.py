"""One HTML page that needs nothing else: its figures are inside, in the page's own colors, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fds_dist.report import figures
from fds_dist.report.contents import RunContents
from fds_dist.run_folder import write_text_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "index.html"

ONE_RUN: dict[str, tuple[figures.Draw, str]] = {
    "schedules": (figures.schedules, "Schedules: the values that each outer step trained with"),
    "validation": (figures.validation, "Validation after each outer step's training run"),
    "paths": (figures.paths, "Values over the outer steps"),
    "hypergradients": (figures.hypergradients, "Hypergradients and their signs"),
    "step_sizes": (figures.step_sizes, "Steps of the outer optimizer"),
    "costs": (figures.costs, "Time, load and memory"),
    "retraining": (figures.retraining, "Retraining on all training data"),
}
SEVERAL_RUNS: dict[str, tuple[figures.Draw, str]] = {
    "validation": (figures.validation, "Validation after each outer step's training run"),
    "schedules": (figures.schedules, "The best schedule of each run"),
}

CSS = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1d2126; --faint: #69707a; --line: #dfe3e8; --card: #f5f7f9 }
@media (prefers-color-scheme: dark) {
  :root { --back: #14171a; --text: #e4e7eb; --faint: #98a1ab; --line: #31373e; --card: #1e2328 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem }
p.sub { color: var(--faint); margin: .2rem 0 1.5rem }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem }
.card { background: var(--card); border-radius: .5rem; padding: .6rem .8rem }
.card b { display: block; font-size: 1.25rem; font-weight: 600 } .card span { color: var(--faint); font-size: .85rem }
figure { margin: 0; overflow-x: auto } figure svg { display: block; width: 100%; height: auto; min-width: 34rem }
svg text { font-family: system-ui, sans-serif }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--faint); font-weight: 500 } td.number, th.number { text-align: right }
pre { background: var(--card); border-radius: .5rem; padding: .8rem; overflow-x: auto;
  font-size: .82rem; line-height: 1.4 }
details summary { cursor: pointer; margin-top: 2rem; font-weight: 600 }
"""


def write_report(runs: Sequence[RunContents], folder: Path, endings: Sequence[str] = ("png", "pdf")) -> Path:
    """Writes the page and, beside it, its figures as files with these `endings`; returns the page's path.

    One run is shown in full, several side by side.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _drawn(runs, folder, endings) if any(run.records for run in runs) else {}
    body = _one(runs[0], drawn) if len(runs) == 1 else _several(runs, drawn)
    title = escape(", ".join(run.name for run in runs))
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f'<link rel="icon" href="data:,"><style>{CSS}</style></head>\n<body>\n{body}\n</body></html>\n'
    )
    write_text_atomic(folder / PAGE, text)
    return folder / PAGE


def _drawn(runs: Sequence[RunContents], folder: Path, endings: Sequence[str]) -> dict[str, str]:
    """The figures by name, as SVG; each is written as files too."""
    import matplotlib as mpl

    wanted = ONE_RUN if len(runs) == 1 else SEVERAL_RUNS
    shown = [run for run in runs if run.records]
    found = {}
    for name, (draw, _) in wanted.items():
        if name == "retraining" and not shown[0].retrained:
            continue
        with mpl.rc_context({**figures.STYLE, "svg.hashsalt": name}):
            figure = draw(shown)
            figure.draw_without_rendering()  # lays it out, once for all files
            figure.set_layout_engine("none")
            for ending in endings:
                figure.savefig(folder / f"{name}.{ending}", dpi=160, facecolor="white")
            found[name] = _svg(figure, name)
    return found


def _svg(figure: Figure, name: str) -> str:
    """Inline SVG in the color of the page's text; ids are the figure's own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(figures.INK, "currentColor")
    text = re.sub(r'(id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" aria-label="{name}" \1>', text, count=1)


def _one(run: RunContents, drawn: Mapping[str, str]) -> str:
    best, records = run.best, run.records
    cards = {
        "best validation loss": "–" if best is None else f"{best.val_loss:.4g}",
        "best validation accuracy": _percent(_best_accuracy(run)),
        "outer steps": str(len(records)),
        "learned numbers": str(len(run.elements)),
        "weights": f"{run.environment['weights']:,}" if isinstance(run.environment.get("weights"), int) else "–",
        "ranks": str(records[-1].world_size if records else run.environment.get("world_size", "–")),
        "time": _duration(sum(record.seconds for record in records)),
        "inner steps": f"{sum(record.horizon for record in records):,}",
    }
    if run.retrained:
        finals = [epochs[-1].get("test_accuracy") for epochs in run.retrained.values()]
        known = [value for value in finals if isinstance(value, float)]
        cards[f"retrained test accuracy ({len(known)} seeds)"] = _percent(sum(known) / len(known) if known else None)
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="sub">{escape(_described(run))}</p>',
        _cards(cards),
        "" if records else "<p>No outer step is done yet.</p>",
        *_figures(drawn, ONE_RUN),
        _events(run),
        "<h2>Outer steps</h2>" + _history(run) if records else "",
        f"<details><summary>Config</summary><pre>{escape(run.config_text)}</pre></details>",
        "<details><summary>Environment</summary>" + _table(("", ""), run.environment.items()) + "</details>",
    ]
    return "\n".join(parts)


def _several(runs: Sequence[RunContents], drawn: Mapping[str, str]) -> str:
    rows = []
    for run in runs:
        best = run.best
        rows.append(
            (
                run.name,
                "–" if best is None else f"{best.val_loss:.4g}",
                _percent(_best_accuracy(run)),
                str(len(run.records)),
                _duration(sum(record.seconds for record in run.records)),
            )
        )
    headings = ("run", "best validation loss", "best validation accuracy", "outer steps", "time")
    parts = [
        f"<h1>{len(runs)} runs side by side</h1>",
        _table(headings, rows),
        *_figures(drawn, SEVERAL_RUNS),
        "<h2>Where their configs differ</h2>" + _differences(runs),
    ]
    return "\n".join(parts)


def _figures(drawn: Mapping[str, str], titles: Mapping[str, tuple[figures.Draw, str]]) -> list[str]:
    return [f"<h2>{escape(titles[name][1])}</h2>\n<figure>{svg}</figure>" for name, svg in drawn.items()]


def _cards(cards: Mapping[str, str]) -> str:
    shown = (
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in cards.items()
    )
    return f'<div class="cards">{"".join(shown)}</div>'


def _events(run: RunContents) -> str:
    rows = [(record.outer_step, event) for record in run.records for event in record.events]
    return "<h2>Events</h2>" + _table(("outer step", "event"), rows) if rows else ""


def _history(run: RunContents) -> str:
    rows = []
    for record in run.records:
        values = "; ".join(
            f"{name} {' '.join(f'{value:.4g}' for value in row)}" for name, row in record.hyperparameters.items()
        )
        loss, accuracy = f"{record.val_loss:.4g}", _percent(record.val_accuracy)
        rows.append((record.outer_step, record.horizon, loss, accuracy, _duration(record.seconds), values))
    return _table(("outer step", "horizon", "val loss", "val accuracy", "time", "trained with"), rows)


def _differences(runs: Sequence[RunContents]) -> str:
    flat = [dict(_flattened(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    rows = [
        (key, *(str(config.get(key, "–")) for config in flat))
        for key in keys
        if len({str(config.get(key)) for config in flat}) > 1
    ]
    return _table(("key", *(run.name for run in runs)), rows) if rows else "<p>Nowhere.</p>"


def _flattened(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flattened(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    top = f"<thead><tr>{head}</tr></thead>" if any(headings) else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _described(run: RunContents) -> str:
    task, model = (str((run.config.get(key) or {}).get("name", "its own")) for key in ("task", "model"))
    started = str(run.environment.get("started", ""))[:16].replace("T", " ")
    return f"task {task}, model {model}, estimator {run.estimator}" + (f", started {started}" if started else "")


def _best_accuracy(run: RunContents) -> float | None:
    return max((r.val_accuracy for r in run.records if r.val_accuracy is not None), default=None)


def _percent(share: float | None) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
