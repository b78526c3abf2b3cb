"""The page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence

from fds_dist.report.panels import DARK_RAMP, RAMP


def _ramp(colors: Sequence[str]) -> str:
    return "; ".join(f"--ramp{index}: {color}" for index, color in enumerate(colors))


# On paper it is light, whatever the screen is.
CSS = f"""
:root {{ color-scheme: light dark; --back: #ffffff; --text: #1d2126; --faint: #616871; --line: #dfe3e8; --card: #f5f7f9;
  {_ramp(RAMP)} }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ --back: #14171a; --text: #e4e7eb; --faint: #98a1ab; --line: #31373e; --card: #1e2328;
    {_ramp(DARK_RAMP)} }} }}
* {{ box-sizing: border-box }}
body {{ margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: break-word }}
main {{ max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere }}
h2 {{ font-size: 1.15rem; margin: 2.5rem 0 .25rem }}
p.sub, figcaption {{ color: var(--faint); margin: .2rem 0 1rem }} figcaption {{ font-size: .9rem; max-width: 46rem }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin: 0 }}
.cards div {{ display: flex; flex-direction: column-reverse; justify-content: flex-end; background: var(--card);
  border-radius: .5rem; padding: .6rem .8rem }}
.cards dd {{ margin: 0; font-size: 1.25rem; font-weight: 600 }} .cards dt {{ color: var(--faint); font-size: .85rem }}
figure {{ margin: 0 }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: 1rem 1.25rem;
  align-items: end }}
.panel svg {{ display: block; width: 100%; height: auto }}
.panels.wide {{ display: flex; flex-wrap: wrap }} .wide .panel {{ overflow-x: auto; max-width: 100% }}
.wide .panel svg {{ max-width: 100% }}
svg text {{ font-family: system-ui, sans-serif !important }}
.scroll {{ overflow-x: auto; margin-top: .5rem }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  font-weight: 400 }}
tbody th {{ white-space: nowrap }} thead th {{ color: var(--faint); vertical-align: bottom }}
td.number, th.number {{ text-align: right }} td.number {{ white-space: nowrap }}
td {{ max-width: 34rem }} tr.best > * {{ font-weight: 600 }}
pre {{ background: var(--card); border-radius: .5rem; padding: .8rem; overflow-x: auto; font-size: .82rem;
  line-height: 1.4 }}
summary {{ cursor: pointer; margin-top: 2rem; font-weight: 600 }}
@media print {{
  main {{ max-width: none; padding: 0 }} section {{ break-inside: avoid }}
  .scroll, .wide .panel, pre {{ overflow: visible }} pre {{ white-space: pre-wrap }}
  details::details-content {{ content-visibility: visible; display: block }} }}
"""
