"""What each launcher says about a process, and every fault of it at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fds_dist.common.faults import UserError
from fds_dist.distributed.environment import LaunchEnvironment, first_host, launcher, read_environment, tasks_on_node

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip
DEEPSPEED = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", "CROSS_RANK": "1", "CROSS_SIZE": "2",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node[0-1]", "SLURM_NODEID": "1", "SLURM_JOB_ID": "1230100",
}  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "port"), [(TORCHRUN, 29500), (DEEPSPEED, 29500), (SRUN, 29500)], ids=["torchrun", "deepspeed", "srun"]
)
def test_each_launcher(variables: dict[str, str], port: int) -> None:
    environment = read_environment({"PATH": "/bin", **variables})
    assert environment == LaunchEnvironment(5, 8, 1, 4, "node0", port)
    assert environment.distributed


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"MASTER_ADDR": "elsewhere", "MASTER_PORT": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"},  # in an allocation, but not under srun
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "node0"},
    ],
    ids=["nobody", "one rank", "left-overs", "sbatch", "srun with one task"],
)
def test_one_process_joins_nobody(variables: dict[str, str]) -> None:
    environment = read_environment(variables)
    assert not environment.distributed
    assert (environment.rank, environment.world_size, environment.local_rank) == (0, 1, 0)


def test_torchrun_inside_a_slurm_job_goes_before_slurm() -> None:
    assert read_environment({**SRUN, **TORCHRUN, "RANK": "7"}).rank == 7


def test_all_ranks_of_a_slurm_step_agree_on_where_to_meet() -> None:
    met = {
        (environment.master_address, environment.master_port)
        for rank in range(8)
        for environment in [read_environment({**SRUN, "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank // 4)})]
    }
    assert len(met) == 1


def test_what_the_user_sets_goes_before_what_is_guessed_under_srun() -> None:
    environment = read_environment({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (environment.master_address, environment.master_port) == ("10.0.0.1", 4000)


def test_torchrun_says_how_often_it_has_started_the_ranks_again() -> None:
    assert read_environment(TORCHRUN).restarts == 0
    assert read_environment({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}).restarts == 2
    assert faults_of({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "x"}) == [
        "environment variable TORCHELASTIC_RESTART_COUNT: 'x' is not valid; "
        "expected a whole number of at least 0, set by torchrun, deepspeed or srun"
    ]


def test_children_of_one_launcher_agree_on_it_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launcher() is None
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "any"}
    line = [sys.executable, "-c", "from fds_dist.distributed.environment import launcher; print(launcher())"]

    def child() -> str:
        return subprocess.run(line, env=environment, check=True, capture_output=True, text=True).stdout

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    assert child() == child() != f"{launcher()}\n"
    assert f" {os.getpid()} " in child()


def faults_of(variables: dict[str, str]) -> list[str]:
    with pytest.raises(UserError) as raised:
        read_environment(variables)
    return [str(fault) for fault in raised.value.faults]


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        (TORCHRUN, {"RANK": None}, ["RANK: is not set"]),
        (TORCHRUN, {"WORLD_SIZE": ""}, ["WORLD_SIZE: is not set"]),
        (TORCHRUN, {"RANK": "one"}, ["RANK: 'one' is not valid"]),
        (TORCHRUN, {"RANK": "-1"}, ["RANK: '-1' is not valid; expected a whole number of at least 0"]),
        (TORCHRUN, {"WORLD_SIZE": "0"}, ["WORLD_SIZE: '0' is not valid; expected a whole number of at least 1"]),
        (TORCHRUN, {"RANK": "8"}, ["RANK: 8 is out of range; expected below WORLD_SIZE=8"]),
        (TORCHRUN, {"MASTER_ADDR": None}, ["MASTER_ADDR: is not set"]),
        (TORCHRUN, {"MASTER_PORT": "99999"}, ["MASTER_PORT: '99999' is not valid"]),
        (TORCHRUN, {"LOCAL_WORLD_SIZE": "0"}, ["LOCAL_WORLD_SIZE: '0' is not valid"]),
        (DEEPSPEED, {"LOCAL_SIZE": "x"}, ["LOCAL_SIZE: 'x' is not valid"]),
        (
            TORCHRUN,
            {"RANK": "a", "LOCAL_RANK": "b", "MASTER_ADDR": None, "MASTER_PORT": "c"},
            ["RANK: 'a'", "MASTER_PORT: 'c'", "MASTER_ADDR: is not set", "LOCAL_RANK: 'b'"],
        ),
        (SRUN, {"SLURM_STEP_NUM_TASKS": "many"}, ["WORLD_SIZE: 'many' is not valid"]),
        (SRUN, {"SLURM_LOCALID": None}, ["LOCAL_RANK: is not set"]),
        (SRUN, {"SLURM_STEP_NODELIST": None, "SLURM_JOB_ID": "?"}, ["MASTER_ADDR: is not set"]),
    ],
)
def test_every_fault_is_named_at_once(
    base: dict[str, str], changes: dict[str, str | None], expected: list[str]
) -> None:
    variables = {name: value for name, value in {**base, **changes}.items() if value is not None}
    lines = faults_of(variables)
    assert len(lines) == len(expected)
    assert all(line.startswith(f"environment variable {part}") for line, part in zip(lines, expected, strict=True))


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("gpu003", "gpu003"),
        ("gpu003,gpu004", "gpu003"),
        ("gpu[003-005,9],login", "gpu003"),
        ("gpu[7,9]", "gpu7"),
        ("login,gpu[003-005]", "login"),
        ("node[1-2].cluster.org,x", "node1.cluster.org"),
        ("rack[1-2]-node[07-9,12]", "rack1-node07"),
        ("", ""),
    ],
)
def test_first_host(node_list: str, host: str) -> None:
    assert first_host(node_list) == host


@pytest.mark.parametrize(
    ("tasks_per_node", "counts"),
    [("4", ["4"]), ("4(x2),3", ["4", "4", "3"]), ("1,2(x2)", ["1", "2", "2"]), ("", [""])],
)
def test_tasks_on_node(tasks_per_node: str, counts: list[str]) -> None:
    assert [tasks_on_node(tasks_per_node, str(node)) for node in range(len(counts))] == counts
    assert tasks_on_node(tasks_per_node, "") == counts[0]
