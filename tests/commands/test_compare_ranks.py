"""A comparison on two ranks. As a program, this file is what each rank runs: `test_compare_ranks.py FOLDER`."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from launching import start_ranks
from problems import CPU, image_task, make_problem, mlp

from fds_dist.commands.compare.comparison import compare
from fds_dist.commands.compare.job import Job, Trial
from fds_dist.commands.compare.results import Comparison
from fds_dist.common.records import RecordFile
from fds_dist.config.compare import CompareConfig
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.outer.progress import OuterSettings
from fds_dist.outer.rules import SignRule

HORIZON, TRIALS = 10, 11
SMOOTH = ["cosine", "refined", *(["schedule_free"] if find_spec("schedulefree") else [])]


def compare_here(folder: Path) -> Comparison:
    """The comparison on whatever ranks this process is one of."""
    environment = read_environment()
    options = CompareConfig.model_validate(
        {"methods": ["fds", "random", "bohb", *SMOOTH], "seeds": 1, "judge_seeds": 3, "budget": TRIALS * HORIZON}
    )
    problem = make_problem(image_task(mlp), {"lr": [0.01, 0.01], "momentum": [0.1]})
    with Ranks(environment, MeshShape(1, environment.world_size, 1), CPU) as ranks:
        settings = OuterSettings((10, 10))
        job = Job(problem, SignRule(), settings, "forward", options, ranks, average=2, judge_seeds=1)
        return compare(job, folder)


def test_two_ranks_share_trials_and_agree_and_one_rank_reads_what_they_did(tmp_path: Path) -> None:
    ended = start_ranks([__file__, str(tmp_path / "two")], 2, [tmp_path])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    assert ended[0].out == ended[1].out  # every rank knows everything
    two, one = Comparison.load(tmp_path / "two"), compare_here(tmp_path / "one")
    assert json.loads(ended[0].out) == json.loads(two.to_json())

    fds, random, bohb, *smooth = two.runs
    # The outer loop gives the same bits on any number of ranks; judges train each run on one rank.
    assert [(best.own_loss, best.judgements) for best in fds.incumbents] == [
        (best.own_loss, best.judgements) for best in one.runs[0].incumbents
    ]
    assert (random.trials, random.cost) == (TRIALS, TRIALS * HORIZON)
    assert bohb.trials > TRIALS and (TRIALS - 2) * HORIZON < bohb.cost <= TRIALS * HORIZON
    trials = RecordFile(tmp_path / "two" / "bohb" / "trials-0.jsonl", Trial).read()
    assert [trial.number for trial in trials] == list(range(bohb.trials))
    assert {trial.steps for trial in trials} == {1, 3, HORIZON}

    finished = compare_here(tmp_path / "two")  # nothing is left to search or to judge
    assert finished.runs == two.runs

    assert all(search.trials == TRIALS and search.cost == TRIALS * HORIZON for search in smooth)
    (tmp_path / "two" / "judge.jsonl").unlink()
    again = compare_here(tmp_path / "two")  # one rank trains the winners of two ranks anew
    assert again.runs == two.runs


if __name__ == "__main__":
    sys.stdout.write(compare_here(Path(sys.argv[1])).to_json())
