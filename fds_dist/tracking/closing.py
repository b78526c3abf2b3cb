"""What the console says of a search that has ended."""

from __future__ import annotations

from fds_dist.common.words import percent
from fds_dist.tracking.records import RunEnd
from fds_dist.tracking.verdict import DESCRIBED

SCHEDULE = "schedule.json"
"""The file of the result in a run's folder."""


def closing_facts(end: RunEnd) -> dict[str, str]:
    """What the closing lines say of the search: what was gained, what to use, and what that rests on."""
    facts = {"message": end.message}
    if end.verdict is not None:
        facts["gained"] = end.verdict.headline
    if end.status == "finished" and end.schedule:
        judged = "" if end.verdict else ", which nothing has judged (outer.judge_seeds)"
        facts["use"] = f"{SCHEDULE}: {DESCRIBED.get(end.result or '', 'the learned values')}{judged}"
    if end.verdict is not None:
        facts["judged"] = "\n".join(f"{name} {candidate}" for name, candidate in end.verdict.candidates.items())
    facts["best"] = _best(end)
    return {name: fact for name, fact in facts.items() if fact}


def result_files(end: RunEnd) -> dict[str, str]:
    """The files in the run's folder that a person may want → what they hold."""
    files = {SCHEDULE: DESCRIBED.get(end.result or "", "the learned values")}
    candidates = {f"schedule_{name}.json": holds for name, holds in DESCRIBED.items()}
    files |= {file: holds for file, holds in candidates.items() if (end.run_dir / file).is_file()}
    return files | {"history.jsonl": "every outer step"} | dict.fromkeys(_report(end), "figures")


def _best(end: RunEnd) -> str:
    facts = []
    if end.best_val_accuracy is not None:
        facts.append(f"val accuracy {percent(end.best_val_accuracy)}")
    if end.best_val_loss is not None:
        facts.append(f"val loss {end.best_val_loss:.4g}")
    if end.best_outer_step is not None:
        facts.append(f"at outer step {end.best_outer_step}")
    return ", ".join(facts)


def _report(end: RunEnd) -> list[str]:
    """The path of the report's page within the run's folder; none without a report."""
    return [] if end.report is None else [end.report.relative_to(end.run_dir).as_posix()]
