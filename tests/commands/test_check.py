"""What `check` and `verify` print: whole words and whole names at any width."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

import fds_dist
from fds_dist.build import Build
from fds_dist.commands.check.command import print_check
from fds_dist.commands.check.cost import CostReport
from fds_dist.commands.check.plan_text import owned_text
from fds_dist.commands.verify.command import print_verification
from fds_dist.commands.verify.derivatives import Comparison, Verification
from fds_dist.schedule.space import Hyperparameter, HyperparameterSpace

CONFIG = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"epochs": 4},
    "hyperparameters": {
        "lr": {"init": 0.1, "step": 0.05, "buckets": 7},
        "momentum": {"init": 0.5, "step": 0.1},
        "weight_decay": {"init": 1e-3, "step": 1e-4},
    },
}
NAMES = [f"lr[{bucket}]" for bucket in range(7)] + ["momentum[0]", "weight_decay[0]"]


def console(terminal: bool, width: int) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=width, color_system=None, highlight=False), file


Checked = tuple[Build, CostReport]


def checked(world_size: int) -> Checked:
    return fds_dist.check(CONFIG, world_size=world_size)


def check_text(found: Checked, terminal: bool = True, width: int = 80) -> str:
    built, report = found
    where, file = console(terminal, width)
    print_check(built.config, built.problem, report, ("a remark [of] ours",), where)
    return file.getvalue()


def test_check_fits_a_terminal_of_80_columns_word_by_word() -> None:
    found = checked(2)
    narrow, wide = check_text(found), check_text(found, width=1000)
    assert max(map(len, narrow.splitlines())) <= 80
    assert sorted(narrow.split()) == sorted(wide.split())


def test_check_shows_the_plan_first_and_then_the_config() -> None:
    text = check_text(checked(4))
    assert text.startswith("Plan  3 outer steps of 16 inner steps on 4 ranks (cpu); 123 weights, 9 tangents \nby ")
    assert text.index("note: a remark [of] ours") < text.index("rank  owns") < text.index("Config  with every default:")
    owned = re.findall(r"(?:lr|momentum|weight_decay)\[[^]]*\]", text.partition("Per rank")[0])
    buckets = [part for name in owned if name.startswith("lr") for part in name[3:-1].split(", ")]
    ends = [list(map(int, part.split("-"))) for part in buckets]
    assert sorted(bucket for end in ends for bucket in range(end[0], end[-1] + 1)) == list(range(7))
    assert "use at most" not in text


def test_check_answers_for_reverse_mode_where_the_config_asks_for_it() -> None:
    found = fds_dist.check({**CONFIG, "estimator": "reverse"}, world_size=2)
    text = check_text(found, terminal=False, width=140)
    assert re.search(r"0-1 +all, by one sweep back +64 +100%", text)  # 4 plain steps for each of 16
    assert "states kept over the horizon" in text and "each tangent adds" not in text
    assert "Reverse mode spreads over mesh.data alone: 2 ranks on the tangent axis repeat the same sweep." in text


def test_check_names_the_ranks_that_own_nothing() -> None:
    one, three = check_text(checked(10), width=200), check_text(checked(12), width=200)
    assert "Rank 9 owns no tangent and would only repeat the training run: use at most 9 ranks, or give them" in one
    assert "Ranks 9-11 own no tangent" in three
    assert (one.count("no tangent"), three.count("no tangent")) == (2, 4)  # in the table too


def test_a_pipe_gets_whole_lines() -> None:
    text = check_text(checked(2), terminal=False, width=140)
    assert any(len(line) > 140 and line.endswith(".") for line in text.splitlines())  # not broken at any width
    assert "\x1b" not in text


def verification(error: float, left_out: tuple[str, ...] = ()) -> Verification:
    comparisons = [
        Comparison(name, [-1.23456789e-5 * (index + 1) for index in range(9)], error, 1e-10)
        for name in ("forward, jvp", "forward, double_backward", "finite differences")
    ]
    return Verification(50, [0.1] * 9, comparisons[0].hypergradients, tuple(comparisons), left_out)


@pytest.mark.parametrize("terminal", [True, False])
def test_verify_shows_every_hypergradient_and_the_verdict(terminal: bool) -> None:
    built, _ = checked(1)
    where, file = console(terminal, 80)
    print_verification(built.problem, verification(1e-16), where)
    lines = file.getvalue().splitlines()
    if terminal:
        assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if re.match(r"\S+\[\d\]", line)]
    assert [row[0] for row in rows] == NAMES
    assert rows[1] == ["lr[1]", "0.1", *["-2.4691e-05"] * 4]
    assert lines[-1] == "verified"
    assert sum("agrees" in line for line in lines) == 1
    assert "…" not in file.getvalue()


def test_verify_says_what_differs_and_what_was_left_out() -> None:
    built, _ = checked(1)
    where, file = console(True, 80)
    print_verification(built.problem, verification(1e-3, ("forward mode by jvp: cannot [do] it",)), where)
    text = file.getvalue()
    assert text.count("differs") == 3
    assert "left out: forward mode by jvp: cannot [do] it" in text
    assert text.rstrip().endswith("not verified")


@pytest.mark.parametrize(
    ("elements", "text"),
    [
        ([], ""),
        ([0], "lr[0]"),
        ([6, 5, 0, 2, 1], "lr[0-2, 5-6]"),
        ([3, 8, 7], "lr[3] momentum[0-1]"),
    ],
)
def test_owned_elements_in_words(elements: list[int], text: str) -> None:
    space = HyperparameterSpace((Hyperparameter("lr", 0.1, 0.1, 7), Hyperparameter("momentum", 0.1, 0.1, 2)))
    assert owned_text(space, elements) == text
