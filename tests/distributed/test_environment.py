"""What each launcher says about a process, and every fault of it at once."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from fds_dist.common.faults import UserError
from fds_dist.distributed.environment import LaunchEnvironment, read_environment
from fds_dist.distributed.launchers import first_host, launcher_process, tasks_on_node, told_local_rank

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
        "expected a whole number of at least 0, set by the launcher"
    ]


def test_children_of_one_launcher_agree_on_it_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launcher_process() is None
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "any"}
    line = [
        sys.executable,
        "-c",
        "from fds_dist.distributed.launchers import launcher_process; print(launcher_process())",
    ]

    def child() -> str:
        return subprocess.run(line, env=environment, check=True, capture_output=True, text=True).stdout

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    assert child() == child() != f"{launcher_process()}\n"
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
        (SRUN, {"SLURM_STEP_NUM_TASKS": "many"}, ["SLURM_STEP_NUM_TASKS: 'many' is not valid"]),
        (SRUN, {"SLURM_LOCALID": None}, ["SLURM_LOCALID: is not set"]),
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


# --- mpirun and its relatives ---

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_RANK": "1", "PMIX_NAMESPACE": "prterun-host-1234@1",
}  # fmt: skip
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
MVAPICH = {
    "MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "1",
    "MV2_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
CRAY = {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"}
MEETING = {"MASTER_ADDR": "node0", "MASTER_PORT": "4000"}
MPI = {"open mpi": OPEN_MPI, "mpich": MPICH, "mvapich": MVAPICH, "cray": CRAY}


@pytest.mark.parametrize("variables", MPI.values(), ids=MPI)
def test_mpirun_on_one_host_needs_no_address(variables: dict[str, str]) -> None:
    environment = read_environment(variables)
    place = LaunchEnvironment(1, 2, 1, 2, "127.0.0.1", environment.master_port, one_host=True)
    assert environment == place
    other = {name: "0" if name.endswith(("RANK", "RANKID")) else value for name, value in variables.items()}
    assert read_environment(other) == replace(place, rank=0, local_rank=0)  # the same port
    assert read_environment({**variables, **MEETING}) == replace(place, master_address="node0", master_port=4000)


def test_jobs_of_mpirun_meet_at_ports_of_their_own() -> None:
    other = read_environment({**OPEN_MPI, "PMIX_NAMESPACE": "prterun-host-1235@1"})
    assert other.master_port != read_environment(OPEN_MPI).master_port
    assert 20000 <= other.master_port < 30000


def test_shells_between_mpiexec_and_python_do_not_change_the_port() -> None:
    """MPICH says nothing of its job: the process that started all shells tells the ranks which job they are of."""
    code = "from fds_dist.distributed.environment import read_environment; print(read_environment().master_port)"
    clean = {name: value for name, value in os.environ.items() if name not in TORCHRUN}

    def port(rank: int, *shells: str) -> str:
        variables = {**clean, **MPICH, "PMI_RANK": str(rank), "MPI_LOCALRANKID": str(rank)}
        line = [*shells, sys.executable, "-c", code]
        return subprocess.run(line, env=variables, check=True, capture_output=True, text=True).stdout

    shell = ("sh", "-c", '"$@"; exit $?', "sh")
    assert port(0) == port(1, *shell) == port(1, *shell, *shell)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({**MPICH, "MPI_LOCALNRANKS": "1", "MPI_LOCALRANKID": "0"}, ["MASTER_PORT: is not set", "MASTER_ADDR: is not"]),
        ({name: OPEN_MPI[name] for name in list(OPEN_MPI)[:3]}, ["MASTER_PORT: is not set", "MASTER_ADDR: is not set"]),
        ({"OMPI_COMM_WORLD_RANK": "1"}, ["OMPI_COMM_WORLD_SIZE: is not set"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ["OMPI_COMM_WORLD_RANK: is not set"]),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "two"}, ["OMPI_COMM_WORLD_SIZE: 'two' is not valid"]),
        ({**MPICH, "PMI_SIZE": ""}, ["PMI_SIZE: is not set"]),
        ({**MPICH, "PMI_RANK": "2"}, ["PMI_RANK: 2 is out of range; expected below PMI_SIZE=2"]),
        ({**MPICH, "MPI_LOCALRANKID": "x"}, ["MPI_LOCALRANKID: 'x' is not valid"]),
        ({**MPICH, "MPI_LOCALRANKID": "2"}, ["MPI_LOCALRANKID: 2 is out of range"]),
        ({**MPICH, "MPI_LOCALNRANKS": "3", **MEETING}, ["MPI_LOCALNRANKS: 3 is out of range"]),
        ({"PMIX_RANK": "1"}, ["WORLD_SIZE: is not set, and PMIX_RANK=1 does not tell how many"]),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, ["SLURM_STEP_NUM_TASKS: is not set"]),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}, ["SLURM_PROCID: is not set"]),
        # Left over from elsewhere: each process would be the only one.
        ({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "1"}, ["WORLD_SIZE: 1 contradicts OMPI_COMM_WORLD_SIZE=2"]),
        ({**SRUN, "RANK": "0", "WORLD_SIZE": "1"}, ["WORLD_SIZE: 1 contradicts SLURM_STEP_NUM_TASKS=8"]),
        ({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "2"}, ["RANK: 0 contradicts OMPI_COMM_WORLD_RANK=1"]),
        ({**OPEN_MPI, "RANK": "1"}, ["WORLD_SIZE: is not set"]),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "1"}, ["LOCAL_RANK: 1 is out of range"]),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "9"}, ["LOCAL_WORLD_SIZE: 9 is out of range"]),
    ],
)  # fmt: skip
def test_a_place_that_is_not_told_whole_is_refused(variables: dict[str, str], expected: list[str]) -> None:
    lines = faults_of(variables)
    parts = [line.partition("environment variable ")[2] for line in lines]
    assert all(any(part.startswith(start) for part in parts) for start in expected), parts


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({**MPICH, "WORLD_SIZE": "2"}, 2),  # half of it said twice
        ({**OPEN_MPI, "RANK": "1", "WORLD_SIZE": "2"}, 2),
        ({**TORCHRUN, **OPEN_MPI, "TORCHELASTIC_RUN_ID": "x"}, 8),  # mpirun started a torchrun on each of two hosts
        ({**OPEN_MPI, **TORCHRUN, "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, 1),
        ({**SRUN, **OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "16"}, 16),  # srun started the daemons of mpirun
        ({**SRUN, **MPICH, "PMI_SIZE": "8", "PMI_RANK": "5"}, 8),  # srun --mpi=pmi2
        ({name: "1" if "SIZE" in name else "0" for name in OPEN_MPI}, 1),  # mpirun -n 1
        ({"PMIX_RANK": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, 1),  # srun -n 1 --mpi=pmix
    ],
)
def test_launchers_inside_launchers(variables: dict[str, str], size: int) -> None:
    assert read_environment({**MEETING, **variables}).world_size == size


def test_the_place_on_the_host_is_known_before_all_is_checked() -> None:
    assert [told_local_rank(variables) for variables in (TORCHRUN, SRUN, OPEN_MPI, MPICH, {})] == [
        "1",
        "1",
        "1",
        "1",
        "0",
    ]
    assert told_local_rank({**OPEN_MPI, "SLURM_LOCALID": "0"}) == "1"  # the place of mpirun's daemon is another
