"""What is made of the searches: who needs how much more compute, the table, the figure, and the file."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fds_dist.commands.compare.incumbents import incumbents
from fds_dist.commands.compare.job import Trial
from fds_dist.commands.compare.plot import judged_curve, plot_comparison
from fds_dist.commands.compare.results import Comparison, Incumbent, MethodRun
from fds_dist.commands.compare.table import print_comparison
from fds_dist.common.faults import UserError
from fds_dist.common.words import Spread
from fds_dist.outer.judge import Judgement

HORIZON = 100


def incumbent(cost: float, judged: list[float], own: float = 0.1) -> Incumbent:
    """A best value found at `cost`, with what judges say."""
    judgements = [Judgement(seed, loss, 0.9, 0.8) for seed, loss in enumerate(judged)]
    return Incumbent(0, {"lr": [0.1]}, cost, cost / 100, own, judgements)


def searched(method: str, repetition: int, *found: tuple[float, list[float]], cost: float = 2000.0) -> MethodRun:
    """A search that spent `cost` and had these best values on the way."""
    return MethodRun(method, repetition, 10, cost, 1.0, [incumbent(*each) for each in found])


def comparison(*runs: MethodRun) -> Comparison:
    space = {"lr": {"low": 1e-4, "high": 1.0, "scale": "log", "buckets": 7}}
    return Comparison(HORIZON, 2000.0, 1, 2, "forward", space, list(runs))


FULL = comparison(
    searched("fds", 0, (200.0, [0.9, 0.9]), (400.0, [0.5, 0.5]), cost=600.0),
    searched("fds", 1, (200.0, [0.6, 0.6]), (500.0, [0.3, 0.5]), cost=600.0),
    searched("tpe", 0, (100.0, [2.0, 2.0]), (800.0, [0.4, 0.5])),
    searched("tpe", 1, (100.0, [2.0, 2.0]), (1500.0, [0.4, 0.4])),
    searched("random", 0, (100.0, [2.0, 2.0]), (1200.0, [0.2, 0.2])),
    searched("random", 1, (100.0, [2.0, 2.0]), (1500.0, [0.6, 0.6])),
    searched("hyperband", 0, (100.0, [0.7, 0.9])),
    searched("hyperband", 1, (100.0, [math.inf, 0.1])),
)


def test_a_rival_is_measured_by_when_its_best_is_judged_as_good_as_the_answer_of_fds() -> None:
    # fds needed 400 and 500; tpe 800 and 1500, so 2 and 3 times as much.
    reach = FULL.reach("tpe")
    assert reach is not None and reach.factor is not None
    assert (reach.factor.mean, reach.factor.std) == pytest.approx((2.5, math.sqrt(0.5)))
    assert (reach.reached, reach.repetitions, reach.within) == (2, 2, pytest.approx((5 + 4) / 2))


def test_a_rival_that_gets_there_in_some_repetitions_or_in_none_says_so() -> None:
    some, none = FULL.reach("random"), FULL.reach("hyperband")
    assert some is not None and some.factor == Spread(3.0, None) and (some.reached, some.repetitions) == (1, 2)
    assert none is not None and none.factor is None and none.reached == 0


def test_without_the_reference_nothing_is_measured_by_it() -> None:
    assert comparison(*FULL.runs_of("tpe")).reach("tpe") is None
    assert comparison(searched("fds", 0), searched("tpe", 0, (1.0, [0.1]))).reach("tpe") is None


def test_the_curve_is_the_mean_of_what_each_repetitions_best_is_worth_and_may_rise() -> None:
    curve = judged_curve(FULL, "random")
    assert curve is not None
    assert curve.cost == [100.0, 1200.0, 1500.0, 2000.0]
    assert curve.mean == pytest.approx([2.0, 1.1, 0.4, 0.4])
    risen = comparison(searched("fds", 0, (100.0, [0.3]), (200.0, [0.5])))
    assert judged_curve(risen, "fds") == ([100.0, 200.0, 2000.0], [0.3, 0.5, 0.5], [0.0, 0.0, 0.0])


def test_the_curve_begins_where_every_repetition_has_a_value() -> None:
    late = comparison(searched("tpe", 0, (100.0, [0.3])), searched("tpe", 1, (700.0, [0.5])))
    curve = judged_curve(late, "tpe")
    assert curve is not None and curve.cost[0] == 700.0 and curve.mean[0] == pytest.approx(0.4)
    assert judged_curve(comparison(searched("tpe", 0, (1.0, [0.3])), searched("tpe", 1)), "tpe") is None


def test_only_whole_runs_that_improve_are_incumbents_and_cost_counts_all_trials() -> None:
    def trial(number: int, loss: float, steps: int) -> Trial:
        return Trial(number, [0.1], loss, None, steps, float(steps), 1.0)

    trials = [trial(0, 0.01, 33), trial(1, 0.5, 100), trial(2, math.inf, 100), trial(3, 0.6, 100), trial(4, 0.4, 100)]
    assert [(best.trial.number, best.cost, best.seconds) for best in incumbents(trials, 100)] == [
        (1, 133.0, 2.0),
        (4, 433.0, 5.0),
    ]


def printed(found: Comparison) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_comparison(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_tells_who_reached_what() -> None:
    text = printed(FULL)
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "needed 4.5 ± 0.707 runs" in rows["fds"]
    assert "needs 2.5 ± 0.71×" in rows["tpe"]
    assert "needs 3.0× in 1 of 2, else more than 4.5×" in rows["random"]
    assert "not within its budget (4.5×)" in rows["hyperband"]
    assert "0.4500 ± 0.0707" in rows["fds"] and "80.0% ± 0.0%" in rows["fds"]


def test_the_table_says_what_the_searches_searched() -> None:
    assert "lr 0.0001 to 1 (log, 7 buckets)" in printed(FULL) and "warm-up" not in printed(FULL)
    space = {"lr": {**FULL.search_space["lr"], "shape": "linear"}}
    smooth = replace(FULL, search_space=space, runs=[*FULL.runs, searched("cosine", 0, (100.0, [0.3]))])
    assert "(log, 7 buckets of shape linear)" in printed(smooth)
    assert "cosine: a value at every step; searched are the warm-up's share" in printed(smooth)


def test_the_table_says_how_searches_ended() -> None:
    noted = comparison(replace(searched("fds", 1, (200.0, [0.9])), note="over [so to say]"))
    assert "fds, repetition 1: over [so to say]" in printed(noted)


def test_retrained_accuracy_takes_the_place_of_the_judges() -> None:
    retrained = comparison(*(replace(run, retrained_accuracies=[0.25, 0.75]) for run in FULL.runs))
    assert "80.0%" in printed(FULL) and "on all training data" not in printed(FULL)
    assert "50.0%" in printed(retrained) and "80.0%" not in printed(retrained)
    assert "mean of 2 trained on all training data" in printed(retrained)


@pytest.mark.parametrize(
    "found",
    [FULL, comparison(searched("fds", 0)), comparison(searched("bohb", 0, (100.0, [math.inf])))],
    ids=["full", "nothing found", "diverged"],
)
def test_table_figure_and_file_are_made_of_whatever_was_found(tmp_path: Path, found: Comparison) -> None:
    printed(found)
    pdf, png = plot_comparison(found, tmp_path)
    assert pdf.read_bytes().startswith(b"%PDF") and png.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "compare.json").write_text(found.to_json())
    assert Comparison.load(tmp_path) == found


def test_the_file_is_strict_json_with_a_summary() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads(FULL.to_json(), parse_constant=refuse)
    assert content["summary"]["tpe"]["reach"]["factor"]["mean"] == pytest.approx(2.5)
    assert content["summary"]["hyperband"]["judged_loss"]["mean"] is None  # infinite


def test_a_file_that_is_no_comparison_is_refused(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(UserError, match="is not a comparison"):
        Comparison.load(tmp_path)
    damaged = json.loads(FULL.to_json())
    damaged["runs"][1]["incumbents"][0]["cost"] = "much"
    (tmp_path / "compare.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=r"is damaged \(runs.1.incumbents.0.cost: 'much' is not a number"):
        Comparison.load(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        Comparison.load(tmp_path / "nowhere")
