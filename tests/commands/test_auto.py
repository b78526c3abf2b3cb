"""`estimator: auto`: what it takes and says, on one rank and two. As a program, what each rank runs: `… FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import start_ranks

import fds_dist
from fds_dist.build import choice
from fds_dist.distributed.environment import read_environment

MANY: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "inner": {"steps": 12},
    "hyperparameters": {
        "lr": {"init": 0.05, "step": 0.02, "buckets": 6},
        "momentum": {"init": 0.5, "step": 0.1, "buckets": 3},
    },
    "outer": {"optimizer": "sign", "steps": 2, "tolerance": 1e-9},
    "consistency": {"witness": "off"},
    "estimator": "auto",
    "name": "run",
}
FEW = {"lr": {"init": 0.05, "step": 0.02}}
"""One tangent costs 3 plain steps, where reverse mode costs 4."""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(*overrides: str, **changes: Any) -> fds_dist.CheckResult:
    return fds_dist.check(MANY | changes, overrides)


def hypergradients(estimator: str, *overrides: str) -> list[Any]:
    config = MANY | {"estimator": estimator, "dtype": "float64", "name": estimator}
    result = fds_dist.optimize(config, overrides, progress=False)
    return [number for record in result.history for row in record.hypergradients.values() for number in row]


def test_the_cheaper_one_is_taken_and_check_says_why() -> None:
    many, few = check(), check(hyperparameters=FEW)
    assert (many.built.config.estimator, few.built.config.estimator) == ("reverse", "forward")
    costs = "an inner step costs {} plain steps on the slowest rank, {} mode"
    assert f"estimator auto takes reverse: {costs.format('4.0', '12.0 by forward')}" in many.built.remarks
    assert f"estimator auto takes forward: {costs.format('3.0', '4.0 by reverse')}" in few.built.remarks
    page = many._repr_html_()
    assert "By forward mode an inner step costs 12.0 plain steps" in " ".join(page.split())


def test_ranks_make_forward_mode_the_cheaper_one() -> None:
    spread = fds_dist.check(MANY, world_size=9)
    assert spread.built.config.estimator == "forward"
    # One tangent on each rank.
    assert "costs 3.0 plain steps on the slowest rank, 4.0 by reverse mode" in spread.built.remarks[-1]


def test_it_is_the_named_estimators_run_and_the_folder_says_so() -> None:
    auto, reverse, forward = map(hypergradients, ("auto", "reverse", "forward"))
    assert auto == reverse
    # The same derivatives, summed in another order: a few roundings of float64 over 12 steps.
    assert auto == pytest.approx(forward, rel=1e-11, abs=1e-14)
    assert "\nestimator: reverse\n" in Path("runs/auto/config.yaml").read_text()
    told = json.loads(Path("runs/auto/environment.json").read_text())["estimator"]
    assert (told["asked"], told["estimator"]) == ("auto", "reverse")
    assert "4.0 plain steps" in told["reason"]
    assert "estimator" not in json.loads(Path("runs/reverse/environment.json").read_text())


def test_a_run_that_goes_on_keeps_what_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    began = fds_dist.optimize(MANY, progress=False)
    assert began.config["estimator"] == "reverse"
    monkeypatch.setattr(choice, "chosen", lambda *_: choice.Choice("forward", "the machine is another one now"))
    assert check().built.config.estimator == "forward"
    for steps, overrides in ((3, []), (4, ["estimator=auto"])):
        overrides = [f"outer.steps={steps}", *overrides]
        more = fds_dist.optimize(None, overrides, resume=began.run_dir, progress=False)
        assert (more.config["estimator"], len(more.history)) == ("reverse", steps)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["tangents.clip_hvp=1"], "tangents.clip_hvp=1 has no effect with estimator reverse, which has no tangents"),
        (["tangents.prune.ratio=0.5"], "tangents.prune.ratio=0.5 has no effect with estimator reverse"),
        (["tangents.method=difference"], "tangents.method=difference has no effect with estimator reverse"),
    ],
)
def test_what_reverse_mode_cannot_do_keeps_forward_mode(overrides: list[str], reason: str) -> None:
    built = check(*overrides).built
    assert built.config.estimator == "forward"
    (line,) = [remark for remark in built.remarks if remark.startswith("estimator auto takes forward: ")]
    assert reason in line


def test_checkpoints_on_the_way_do_not_decide() -> None:
    assert check("checkpoint.every_seconds=1e-9").built.config.estimator == "reverse"


def test_memory_decides_where_only_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    state = check().built.problem.state_bytes
    monkeypatch.setattr(choice, "free_bytes", lambda *_: 8 * state)  # 9 tangents; 4 + 3 states of 12 steps
    built = check().built
    assert built.config.estimator == "reverse"
    assert not built.problem.keeps_every_state(12)  # a quarter of 8 states holds no 12
    assert "the other's tangents" in built.remarks[-1]


def test_the_share_of_memory_decides_how_many_states_are_kept() -> None:
    whole, none = (check(f"reverse.memory_share={share}", estimator="reverse") for share in (1, 0))
    assert (whole.report.reverse.plain_steps, none.report.reverse.plain_steps) == (4 * 12, 5 * 12)
    assert whole.report.reverse.memory.tangents > none.report.reverse.memory.tangents
    assert hypergradients("reverse") == hypergradients("reverse", "reverse.memory_share=0", "name=none")


def test_ranks_take_the_same_one_though_they_see_other_memory(tmp_path: Path) -> None:
    ended = start_ranks([__file__, str(tmp_path)], 2, [tmp_path])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert told[0]["estimators"] == ["reverse", "forward"]
    alone = fds_dist.optimize(MANY, progress=False)
    assert told[0]["values"] == {name: list(row) for name, row in alone.schedule.values.items()}


def run_here(folder: Path) -> None:
    """Two searches: rank 1 has memory for kept states of a step or two, then for none."""
    rank = read_environment().rank
    state = check().built.problem.state_bytes
    results = []
    for name, room in (("roomy", 10**12), ("tight", 6 * state)):
        choice.free_bytes = lambda *_, room=room: room if rank else 10**12  # type: ignore[assignment]
        results.append(fds_dist.optimize(MANY | {"name": name}, progress=False))
    told = {"estimators": [result.config["estimator"] for result in results], "values": results[0].schedule.values}
    (folder / f"{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_here(Path(sys.argv[1]))
