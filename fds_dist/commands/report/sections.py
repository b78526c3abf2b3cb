"""The parts of the page, in their order: what the search has brought first, how it went for those who scroll."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fds_dist.commands.report.contents import RunContents, labels
from fds_dist.commands.report.drawing import Drawing
from fds_dist.commands.report.figures import costs, hypergradients, noise, paths, schedules, training
from fds_dist.commands.report.figures.lines import Draw
from fds_dist.commands.report.tables import (
    Table,
    config_differences,
    environment_table,
    event_table,
    machine_facts,
    outer_step_table,
    verdict_table,
)
from fds_dist.commands.report.take_away import TakeAway, take_away
from fds_dist.common.words import counted, number_text

MOST_OPEN = 12
"""A table of more rows is folded."""


class Figure(NamedTuple):
    """A figure with what a reader has to know."""

    draw: Draw
    caption: str


@dataclass
class Section:
    """A part of the page under a heading. It is left out where it has no content."""

    key: str
    title: str
    figures: dict[str, Figure] = field(default_factory=dict)
    """By the name of their files."""
    words: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    table: Table | None = None
    text: str = ""
    """Text as it was written, such as a config."""
    take_away: TakeAway | None = None
    folded: bool = True
    """Whether the reader opens it."""
    drawings: list[tuple[str, list[Drawing]]] = field(default_factory=list)
    """Caption and panels of each figure that has something to show."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.drawings or self.facts or self.table or self.text or self.take_away)


RESULT = (
    "Solid: the values to train with. Dotted: what the search began with. Dashed: for comparison, the usual cosine "
    "from the same peak. An axis is logarithmic where the search moves the logarithm. Values show under the pointer."
)
LOSSES = (
    "The training loss while the network trained, and loss and accuracy on validation data after the training run of "
    "each outer step. A ring marks the lowest loss."
)
SIGNS = (
    "A hypergradient is the derivative of the validation loss after the last training step by one learned number. Up, "
    "positive: the loss rises with the value, and the search lowers it. Down, negative: the search raises it. The "
    "larger the triangle, the larger the number (by its logarithm); hollow, unsure: smaller than its standard error "
    "over the replicas."
)
NOISE = (
    "Signs that keep changing mean that the noise of a training run outweighs what is left to gain. With replicas "
    "(training runs of other seeds whose hypergradients are averaged) also the size in standard errors."
)
COSTS = (
    "Measured: time and peak memory. By the plan: the load in plain steps (a training step without any derivative is "
    "one), and the memory of the tangents (the derivatives of the weights by the learned numbers that a rank, a "
    "process of the search, carries)."
)


def sections_of_one(run: RunContents) -> Iterator[Section]:
    """The page of one run."""
    result = {"result": Figure(schedules.result, RESULT)}
    constants = {
        f"{name}, for the whole run": f"{number_text(start)} → {number_text(value)}"
        for name, (start, value) in schedules.constants(run).items()
    }
    taken = take_away(run)
    yield Section("the-schedule", "The schedule to use", result, facts=constants, take_away=taken, folded=False)
    judged = verdict_table(run)
    if judged is not None and run.verdict is not None:
        horizon, seeds = run.verdict.horizon, counted(run.verdict.seeds, "seed")
        words = f"Each trained for {horizon:,} steps on {seeds} that the search has not seen."
        yield Section("candidates", "The candidates for the result", words=words, table=judged, folded=False)
    losses = {"validation": Figure(training.validation, LOSSES)}
    yield Section("losses", "Training and validation", losses, folded=False)
    retraining = {"retraining": Figure(training.retraining, "On all training data, with the learned schedule.")}
    yield Section("retrained", "Retraining", retraining, folded=False)
    events = event_table([run])
    yield Section("events", f"Events ({len(events.rows)})" if events else "", table=events)
    moves = {
        "schedules": Figure(schedules.schedules, "The values that each outer step trained with, and the result."),
        "paths": Figure(paths.paths, "Each learned number over the outer steps: 0 is the first of the training run."),
        "step_sizes": Figure(paths.step_sizes, "How far the search moves each number next, on its scale."),
    }
    yield Section("moves", "How the values moved", moves)
    signs = {"hypergradients": Figure(hypergradients.hypergradients, SIGNS), "noise": Figure(noise.noise, NOISE)}
    yield Section("derivatives", "Hypergradients and their noise", signs)
    machine = machine_facts(run)
    yield Section("machine", "Time, ranks and memory", {"costs": Figure(costs.costs, COSTS)}, facts=machine)
    yield Section("outer-steps", "Outer steps", table=outer_step_table(run))
    yield Section("config", "Config", text=run.config_text)
    yield Section("environment", "Environment", table=environment_table(run))


def sections_of_several(runs: Sequence[RunContents], folder: Path) -> Iterator[Section]:
    """The page of several runs side by side, which is written to `folder`."""
    losses = {"validation": Figure(training.validation, LOSSES)}
    yield Section("losses", "Training and validation", losses, folded=False)
    results = {"schedules": Figure(schedules.schedules, "The result of each run; before it, its best values.")}
    yield Section("results", "Schedules", results, folded=False)
    differences = config_differences(runs)
    title = f"Where their configs differ ({len(differences.rows)} keys)"
    yield Section("differences", title, table=differences, folded=len(differences.rows) > MOST_OPEN)
    events = event_table(runs)
    yield Section("events", f"Events ({len(events.rows)})" if events else "", table=events)
    yield Section("derivatives", "Hypergradients", {"hypergradients": Figure(hypergradients.hypergradients, SIGNS)})
    yield Section("machine", "Time", {"costs": Figure(costs.costs, "")})
    for index, (label, run) in enumerate(zip(labels(runs), runs, strict=True)):
        yield Section(f"config-{index}", f"Config of {label}", text=run.config_text)
