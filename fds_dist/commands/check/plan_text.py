"""The plan of a search and its cost, as `fds-dist check` prints them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fds_dist.commands.check.cost import CostReport, Memory
from fds_dist.common.console import paragraph, plain_table
from fds_dist.common.words import bytes_text, counted, duration, percent, ranges_text
from fds_dist.inner.plan import PLAIN_STEP_COST, TANGENT_STEP_COST
from fds_dist.inner.problem import Problem
from fds_dist.schedule.space import HyperparameterSpace

WORTH_IT = 1.15
"""The least speed-up that is worth more ranks."""


def print_plan(problem: Problem, report: CostReport, remarks: Sequence[str], console: Console) -> None:
    paragraph(console, f"[bold]Plan[/bold]  {_summary(problem, report)}")
    for remark in remarks:
        paragraph(console, f"note: {escape(remark)}")
    console.print()
    console.print(_plan_table(problem.space, report))
    console.print()
    for line in _predictions(problem, report):
        paragraph(console, line)


def _summary(problem: Problem, report: CostReport) -> str:
    """The size of the problem in a sentence."""
    shortest, longest = min(report.horizons), max(report.horizons)
    horizons = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
    shape = report.shape
    size = shape.replica * shape.tangent * shape.data
    mesh = f", replica {shape.replica} × tangent {shape.tangent} × data {shape.data}" if size > shape.tangent else ""
    return (
        f"{counted(len(report.horizons), 'outer step')} of {horizons} inner steps on "
        f"{counted(size, 'rank')} ({problem.device}{mesh}); {counted(report.weights, 'weight')}, "
        f"{counted(problem.space.size, 'tangent')} by {problem.tangents.method}"
    )


def _plan_table(space: HyperparameterSpace, report: CostReport) -> Table:
    """Ownership, cost and memory per rank for the longest outer step."""
    reverse = report.estimator == "reverse"
    sends = ["sends"] if report.shape.data > 1 else []
    table = plain_table(
        "rank", "owns", "plain steps", "of costliest", "states" if reverse else "tangents", "memory", *sends, "time"
    )
    table.columns[1].justify = "left"
    for rank in (report.reverse,) if reverse else report.ranks:
        table.add_row(
            ranges_text(rank.ranks),
            "all, by one sweep back" if reverse else owned_text(space, rank.elements) or "no tangent",
            f"{rank.plain_steps:,.0f}",
            percent(rank.plain_steps / report.chosen.plain_steps, 0),
            bytes_text(rank.memory.tangents),
            bytes_text(rank.memory.total),
            *([f"{bytes_text(rank.step_traffic)}/step"] if sends else []),
            duration(rank.seconds),
        )
    return table


def _predictions(problem: Problem, report: CostReport) -> list[str]:
    """Sentences on the table's figures, the parts of memory, total time, network traffic, and advice."""
    measured, reverse = report.measured, report.estimator == "reverse"
    memory = report.reverse.memory if reverse else _largest(report)
    on_part = f" on 1/{report.shape.data} of a batch" if report.shape.data > 1 else ""
    how = "measured"
    if measured.extrapolated:
        how = "told by shapes, and times measured" if measured.by_shapes else "measured, like the times,"
        how += " on a few samples, because a step is long here"
        how += f"; shapes alone do not tell it: {measured.untold}" if measured.untold else ""
    held = "states kept over the horizon" if reverse else "tangents"
    each = "" if reverse else f" and each tangent adds {duration(measured.tangent_seconds)}"
    lines = [
        "Per rank, for the longest outer step. A plain step is one training step on a whole batch without tangents. "
        f"Of the largest memory, {bytes_text(memory.total)}, weights take {bytes_text(memory.weights)}, optimizer "
        f"state {bytes_text(memory.state)}, {held} {bytes_text(memory.tangents)}, and activations, gradient and "
        f"products at the peak of a step {bytes_text(memory.step)} ({how}).",
        f"Here a plain step{on_part} takes {duration(measured.plain_seconds)}{each}: all outer steps together take "
        f"about {duration(report.total_seconds)}, without communication.",
        _traffic_line(report),
    ]
    if problem.tangents.compile != "off":
        lines.append(_compiled_line(problem, is_of_compiled=not reverse and not measured.untold))
        if report.chunks and report.chunks.filled and report.chunks.size > 1:
            lines.append(f"Plain steps count the zeros that fill up chunks of {report.chunks.size} tangents.")
    if report.estimator == "greedy":
        lines.append("The plan is forward mode's; estimator=greedy looks only one step ahead and costs less.")
    if report.estimator == "random_directions":
        lines.append(_directions_line(report))
    alone = report.reverse.plain_steps * report.shape.data if reverse else report.one_rank_plain_steps
    if (speed := alone / report.chosen.plain_steps) > 1:
        ranks = report.shape.data if reverse else report.shape.tangent * report.shape.data
        lines.append(f"{ranks} ranks are {speed:.2f} times as fast as one.")
    return [*lines, *(_reverse_advice(report) if reverse else _forward_advice(report)), _cheaper(report)]


def _compiled_line(problem: Problem, is_of_compiled: bool) -> str:
    """A sentence on what was measured in the place of compiled steps; whether their memory was told."""
    if not is_of_compiled:
        return "Times and memory are those of eager steps; the run's own are compiled, and shorter."
    together = counted(problem.tangents.compiled_chunk, "tangent")
    return (
        "Times are those of eager steps; the run's own are compiled, and shorter. Memory is that of the first, "
        f"which are compared with eager ones, {together} at once, and is told within a third."
    )


def _directions_line(report: CostReport) -> str:
    """A sentence on the cost and the error of random directions, beside the exact estimators."""
    count, size = report.directions, len(report.plan.starts)
    return (
        f"The plan is forward mode's; estimator=random_directions has {counted(count, 'tangent')} instead of {size}: "
        f"a step costs {PLAIN_STEP_COST + TANGENT_STEP_COST * count:g} plain steps ({_reverse_step(report):g} by "
        "reverse mode), "
        f"and the hypergradients are right in the mean, with an error of {math.sqrt(size / count - 1):.2g} times their "
        "length in one outer step (none by forward and reverse mode)."
    )


def _reverse_step(report: CostReport) -> float:
    """Plain steps of the whole batch per step of a reverse sweep."""
    return report.reverse.plain_steps * report.shape.data / report.plan.horizon


def _largest(report: CostReport) -> Memory:
    return max((rank.memory for rank in report.ranks), key=lambda memory: memory.total)


def _traffic_line(report: CostReport) -> str:
    """A sentence on what crosses the network."""
    size = report.shape.replica * report.shape.tangent
    if report.shape.data > 1:
        reverse = report.estimator == "reverse"
        traffic = report.reverse.step_traffic if reverse else max(rank.step_traffic for rank in report.ranks)
        what = (
            "gradients and adjoints are summed"
            if reverse
            else "gradient and products are reduced, weights and tangents gathered"
        )
        return f"Along the data axis each rank sends {bytes_text(traffic)} or more in a step: {what}."
    if size > 1:
        return "During the steps only a fingerprint crosses the network now and then; at the end, the hypergradients."
    return "One rank: nothing crosses a network."


def _reverse_advice(report: CostReport) -> list[str]:
    """A sentence on ranks that reverse mode cannot use."""
    if report.shape.tangent == 1:
        return []
    repeating = f"{report.shape.tangent} ranks on the tangent axis repeat the same sweep"
    return [f"Reverse mode spreads over mesh.data alone: {repeating}."]


def _forward_advice(report: CostReport) -> list[str]:
    """Sentences on idle ranks, and on which axis to widen."""
    lines, shape, tangents = [], report.shape, len(report.plan.starts)
    if idle := [place for rank in report.ranks if not rank.elements for place in rank.ranks]:
        idle_ranks = f"Rank {idle[0]} owns" if len(idle) == 1 else f"Ranks {ranges_text(idle)} own"
        others = shape.replica * shape.data
        lines.append(
            f"{idle_ranks} no tangent and would only repeat the training run: use at most {tangents * others} ranks, "
            "or give them to mesh.replica (less noise) or mesh.data (less memory, less time on large batches)."
        )
    elif shape.tangent < tangents:
        lines.append(_more_ranks(report, tangents))
    memory = _largest(report)
    if memory.tangents > memory.step:
        halved = memory.total - (memory.tangents + memory.state + memory.step) // 2
        lines.append(
            "Tangents take most of the memory. More ranks on the tangent or the data axis share them out; "
            f"mesh.data={2 * shape.data} would need about {bytes_text(halved)} per rank."
        )
    return lines


def _more_ranks(report: CostReport, tangents: int) -> str:
    """A sentence on the ranks of the tangent axis, up to one for each of the `tangents`."""
    measured = report.measured_speed_up(tangents)
    if measured < WORTH_IT:
        return (
            f"More ranks on the tangent axis bring next to nothing: with {tangents}, one for each tangent, an outer "
            f"step would be {measured:.2f} times as fast, for a step takes {duration(report.measured.seconds(1))} with "
            "one tangent already. Give them to mesh.replica (less noise) or mesh.data (less memory)."
        )
    return (
        f"More ranks on the tangent axis save time: with {tangents}, one for each tangent, an outer step is "
        f"{report.speed_up(tangents):.2f} times as fast by the cost model and {measured:.2f} times by the measured "
        "step, with no more traffic on the network."
    )


def _cheaper(report: CostReport) -> str:
    """A sentence that compares time and memory of the two exact estimators on these ranks."""
    forward, reverse, horizon = report.costliest.plain_steps, report.reverse.plain_steps, report.plan.horizon
    return (
        f"By forward mode an inner step costs {forward / horizon:.1f} plain steps and takes "
        f"{bytes_text(_largest(report).total)}, whatever the horizon; by reverse mode it costs "
        f"{reverse / horizon:.1f} and takes {bytes_text(report.reverse.memory.total)}, which grow with "
        f"{'the horizon' if report.keeps_every_state else 'the square root of the horizon'}: "
        f"estimator={'reverse' if reverse < forward else 'forward'} is faster here."
    )


def owned_text(space: HyperparameterSpace, elements: Sequence[int]) -> str:
    """Elements of λ in words: `lr[0-2, 5] momentum[0]`."""
    parts = []
    for name, group in groupby(sorted(elements), key=lambda element: space.elements[element].owner.name):
        parts.append(f"{name}[{ranges_text([space.elements[element].number for element in group])}]")
    return " ".join(parts)
