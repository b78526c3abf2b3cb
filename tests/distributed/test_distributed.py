"""Several ranks: the same bits whatever their number, mismatches found, wrong input told once, nobody left waiting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launching import clean_environment, free_port, run_jobs, start_ranks
from selection import slow_unless, wanted

from fds_dist.common.faults import Fault, UserError
from fds_dist.distributed.agreement import merged_faults, on_all_ranks
from fds_dist.distributed.arithmetic import Arithmetic
from fds_dist.distributed.devices import choose_device, set_up
from fds_dist.distributed.environment import GpuView, LaunchEnvironment
from fds_dist.distributed.mesh import MeshShape, Ranks, mesh_shape

BUCKETS = {1: {"lr": 1}, 3: {"lr": 1, "momentum": 1, "weight_decay": 1}, 9: {"lr": 7, "momentum": 1, "weight_decay": 1}}
INITIAL = {"lr": 0.05, "momentum": 0.5, "weight_decay": 1e-3}
METHODS = ("double_backward", "jvp")


def config(buckets: dict[str, int], method: str = "auto", task: Any = "own_tasks:blobs", **sections: Any) -> Any:
    """Two outer steps of eight inner steps of a convolution and batch-norm network, in float32."""
    return {
        "task": task if isinstance(task, dict) else {"name": task},
        "inner": {"epochs": 2},
        "hyperparameters": {
            name: {"init": INITIAL[name], "buckets": count, "step": 0.1 * INITIAL[name]}
            for name, count in buckets.items()
        },
        "outer": {"optimizer": "sign", "steps": 2},
        "tangents": {"method": method},
        **sections,
    }


def history(run_dir: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run_dir) / "history.jsonl").read_text().splitlines()]


# --- the same bits ---


LARGE = {"name": "own_tasks:blobs", "side": 34, "channels": 32}
"""98,627 weights: a sum over them is one that PyTorch shares among threads, where it may have several."""

CASES = {f"{size}-{method}": config(buckets, method) for size, buckets in BUCKETS.items() for method in METHODS}
CASES["large"] = config(BUCKETS[3], task=LARGE)
CASES["greedy"] = config(BUCKETS[9], estimator="greedy", greedy={"discount": 0.5})
CASES["reverse"] = config(BUCKETS[3], estimator="reverse")
CASES["linear"] = config(BUCKETS[9], method="jvp")
CASES["linear"]["hyperparameters"]["lr"]["shape"] = "linear"


RANKS = (4, 2)


def kept(name: str, world_size: int) -> bool:
    """Whether CI has a case on so many ranks: one on 4 and the next on 2, so that each is on several."""
    return RANKS[list(CASES).index(name) % 2] == world_size


@pytest.fixture(scope="module")
def run_folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The runs of the wanted cases on 1, 2 and 4 ranks.

    The single process may use many threads: nobody sets OMP_NUM_THREADS for it, as torchrun does for several ranks.
    """
    many_threads = clean_environment()
    many_threads.pop("OMP_NUM_THREADS", None)
    names_on: dict[int, list[str]] = {size: [] for size in (1, *RANKS)}
    for name, world_size in wanted(request, "name", "world_size"):
        names_on[world_size].append(name)
    names_on[1] = [name for name in CASES if name in names_on[2] or name in names_on[4]]
    found = {}
    for world_size, names in names_on.items():
        # Each rank compares by itself what it runs with plain PyTorch, as one process does: nothing that ranks share.
        witness = f"consistency.witness={'on' if world_size == 1 else 'off'}"
        jobs = [{"config": CASES[name], "overrides": [f"name={name}", witness]} for name in names]
        folder = tmp_path_factory.mktemp("ranks") / str(world_size)
        ends = run_jobs(folder, world_size, jobs, many_threads if world_size == 1 else None)
        assert all(rank == ends[0] for rank in ends)  # every rank returns the same
        assert [end["run_dir"] for end in ends[0]] == [f"runs/{name}" for name in names]
        found[world_size] = folder / "runs"
    return found


@pytest.mark.parametrize(("name", "world_size"), slow_unless(kept, [(name, size) for name in CASES for size in RANKS]))
def test_the_number_of_ranks_does_not_change_a_bit(run_folders: dict[int, Path], name: str, world_size: int) -> None:
    alone, together = run_folders[1] / name, run_folders[world_size] / name
    expected, found = history(alone), history(together)
    assert [record["world_size"] for record in found] == [world_size] * 2
    assert all(len(record["rank_seconds"]) == len(record["rank_peak_bytes"]) == world_size for record in found)
    for key in ("hyperparameters", "hypergradients", "val_loss", "val_accuracy", "step_sizes"):
        assert [record[key] for record in found] == [record[key] for record in expected]
    assert (together / "schedule.json").read_bytes() == (alone / "schedule.json").read_bytes()
    numbers = [number for record in found for values in record["hypergradients"].values() for number in values]
    size = sum(len(values) for values in found[0]["hyperparameters"].values())
    assert len(set(numbers)) == 2 * size  # as many different numbers: none is copied
    assert all(numbers)


# --- ranks that do not see the same ---


def test_ranks_that_differ_are_found_healed_or_let_pass(tmp_path: Path) -> None:
    modes = ("verify", "broadcast", "off")
    jobs = [
        {
            "config": config(
                {"lr": 2},
                task={"name": "own_tasks:per_rank", "record": mode},
                consistency={"mode": mode, "every": 3},
                outer={"steps": 1},
            )
        }
        for mode in modes
    ]
    folder = tmp_path / "two"
    ends = run_jobs(folder, 2, jobs)
    for rank in ends:
        # An epoch has 4 steps, and rank 1 sees other batches from step 4 on: still equal after 3 steps, not after 6.
        assert rank[0]["raised"] == "RunsDiverged"
        assert (rank[0]["step"], rank[0]["ranks"]) == (6, [1])
        assert "the weights of rank 1 differ" in rank[0]["message"]
        assert "still the same at step 3" in rank[0]["message"]
        assert rank[1]["raised"] == "BatchesDiffer"  # copied weights would hide that two runs are differentiated
        assert rank[1]["message"].startswith("up to inner step 6 rank 1 trained on other batches than rank 0")
    losses = [(folder / f"off-{rank}").read_text().splitlines()[-1] for rank in (0, 1)]
    assert losses[0] != losses[1]


def write_config(folder: Path, content: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))


def run_command(world_size: int, folders: list[Path], *arguments: str) -> list[tuple[int, str, str]]:
    ended = start_ranks(["-m", "fds_dist", *arguments], world_size, folders)
    return [(rank.status, rank.out, rank.err) for rank in ended]


def test_a_mismatch_ends_the_command_with_one_line(tmp_path: Path) -> None:
    task = {"name": "own_tasks:per_rank", "record": "losses"}
    write_config(tmp_path, config({"lr": 2}, task=task, consistency={"every": 3}))
    (first, second) = run_command(2, [tmp_path], "optimize", "config.yaml", "name=run")
    assert (first[0], second[0]) == (1, 1)
    assert second[1:] == ("", "")
    (line,) = first[2].splitlines()
    assert line.startswith("fds-dist: the weights of rank 1 differ from the other ranks' at inner step 6")
    assert "consistency.mode=broadcast" in line
    assert "failed" in first[1]
    assert "optimize --resume runs/run" in first[1]


def test_a_rank_that_fails_alone_leaves_nobody_waiting(tmp_path: Path) -> None:
    write_config(tmp_path, config({"lr": 2}, task="own_tasks:Dying"))
    (first, second) = run_command(2, [tmp_path], "optimize", "config.yaml", "name=run")
    assert (first[0], second[0]) == (1, 1)
    assert second[2].splitlines()[-1].endswith("ValueError: planted")  # with its traceback: it may be a bug
    (line,) = first[2].splitlines()
    assert line.startswith("fds-dist: rank 1 ended: ValueError: planted at ")
    assert "own_tasks.py:" in line
    assert "failed; message: rank 1 ended: ValueError: planted at " in first[1]


# --- wrong input ---


def test_wrong_input_is_told_once_and_ends_every_rank(tmp_path: Path) -> None:
    write_config(tmp_path, config({"lr": 0}, mesh={"tangent": 3}))
    (first, second) = run_command(2, [tmp_path], "optimize", "config.yaml", "inner.epoch=2")
    assert first[:2] == (2, "")
    assert second == (2, "", "")
    assert first[2].splitlines() == [
        "fds-dist: inner.epoch: unknown key; did you mean inner.epochs?",
        "fds-dist: hyperparameters.lr.buckets: 0 is out of range; expected a whole number of at least 1",
        "fds-dist: mesh.tangent: 3 does not fit 2 ranks; expected auto or 2, or a launch with 3 ranks",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_file_that_one_rank_lacks_ends_every_rank(tmp_path: Path) -> None:
    write_config(tmp_path / "here", config({"lr": 1}))
    (tmp_path / "there").mkdir()
    (first, second) = run_command(2, [tmp_path / "here", tmp_path / "there"], "optimize", "config.yaml")
    assert first == (2, "", "fds-dist: config.yaml: no such file (on rank 1 only)\n")
    assert second == (2, "", "")
    assert not (tmp_path / "here" / "runs").exists()


def test_faults_of_several_ranks_are_merged() -> None:
    everywhere, here, there = Fault("seed", "is wrong"), Fault("a", "is bad", "b"), Fault("c", "is worse")
    merged = merged_faults([[everywhere, here], [everywhere, there], [everywhere, there]])
    assert list(map(str, merged)) == [
        *("seed: is wrong", "a: is bad (on rank 0 only); expected b", "c: is worse (on ranks 1, 2 only)")
    ]
    assert merged_faults([[], []]) == []


def test_alone_there_is_nobody_to_agree_with() -> None:
    def fail() -> int:
        raise UserError(Fault("seed", "is wrong"))

    assert on_all_ranks(LaunchEnvironment(), lambda: 3) == 3
    with pytest.raises(UserError, match="seed: is wrong"):
        on_all_ranks(LaunchEnvironment(), fail)


# --- a launcher ---


def test_a_run_under_torchrun_prints_once_and_nothing_else(tmp_path: Path) -> None:
    write_config(tmp_path, config(BUCKETS[3]))
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    arguments = ["-m", "fds_dist", "optimize", "config.yaml", "name=run"]
    (launcher,) = start_ranks([*command, *arguments], 1, [tmp_path], clean_environment(OMP_NUM_THREADS="1"))
    assert launcher.status == 0, launcher.err
    assert launcher.err == ""
    lines = [line for line in launcher.out.splitlines() if "inner step" not in line]  # those come by the clock
    assert lines[0] == "fds-dist: run folder runs/run; device cpu, 2 ranks; tangents 3; outer steps 2"
    assert lines[1].startswith("note: checked against plain PyTorch: ")
    assert [line.partition(" done: ")[0] for line in lines[2:4]] == ["outer step 0", "outer step 1"]
    unjudged = "the values after the last update, which nothing has judged (outer.judge_seeds)"
    assert lines[4].startswith(f"finished; use: schedule.json: {unjudged}; best: val accuracy ")
    next_steps = [line.partition(": ")[0] for line in lines[5:]]
    assert next_steps == [
        *("to train with it", "to train on all data", "to export it", "to check its gradients", "to search further")
    ]


# --- the other axes, from the config to the files ---


def test_data_and_replica_axes_come_from_the_config_and_end_in_the_record(tmp_path: Path) -> None:
    exact = {"dtype": "float64"}
    jobs = [
        {"config": config(BUCKETS[3], mesh={"data": 2}, name="data", **exact)},
        {"config": config(BUCKETS[3], mesh={"replica": 2}, name="replica", **exact)},
        {"config": config(BUCKETS[3], mesh={"data": 2}, task="own_tasks:Unseeded")},
        {"config": config(BUCKETS[3], mesh={"data": 3})},
    ]
    (data, replica, unseeded, unfit), second = run_jobs(tmp_path / "two", 2, jobs)
    assert second == [data, replica, unseeded, unfit]
    (alone, *_) = run_jobs(tmp_path / "one", 1, [{"config": config(BUCKETS[3], name="alone", **exact)}])
    (expected, _), (found, _) = history(tmp_path / "one" / alone[0]["run_dir"]), history(tmp_path / "two/runs/data")
    for name, numbers in expected["hypergradients"].items():
        # Sums over two parts of a batch round differently: 1e-16 each, through 8 steps.
        assert found["hypergradients"][name] == pytest.approx(numbers, rel=1e-12)
    assert "hypergradient_spread" not in found
    spread = history(tmp_path / "two/runs/replica")[0]["hypergradient_spread"]
    assert {name: len(numbers) for name, numbers in spread.items()} == BUCKETS[3]
    assert all(number > 0 for numbers in spread.values() for number in numbers)
    assert unseeded["raised"] == "BatchesDiffer"
    assert unfit["message"].startswith("mesh: data 3 does not divide 2 ranks")


# --- the mesh and the device ---


def test_the_mesh_fits_the_world_size() -> None:
    assert mesh_shape("auto", 1, 1, 4) == (MeshShape(1, 4, 1), [])
    assert mesh_shape(4, 1, 1, 4) == (MeshShape(1, 4, 1), [])
    assert mesh_shape("auto", 2, 1, 4) == (MeshShape(1, 2, 2), [])  # what the other axes leave
    assert mesh_shape("auto", 1, 2, 4) == (MeshShape(2, 2, 1), [])
    assert mesh_shape(3, 2, 2, 12) == (MeshShape(2, 3, 2), [])


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ((2, 1, 1, 1), "mesh.tangent: 2 does not fit 1 rank; expected auto or 1, or a launch with 2 ranks"),
        (("auto", 2, 1, 3), "mesh: data 2 does not divide 3 ranks; expected a launch with a multiple of 2"),
        (
            ("auto", 2, 3, 4),
            "mesh: replica 3 × data 2 does not divide 4 ranks; expected a launch with a multiple of 6",
        ),
        (
            (3, 1, 2, 4),
            "mesh.tangent: replica 2 × tangent 3 × data 1 does not fit 4 ranks; "
            "expected auto or 2, or a launch with 6 ranks",
        ),
    ],
)
def test_a_mesh_that_cannot_be(sizes: tuple[Any, int, int, int], line: str) -> None:
    shape, faults = mesh_shape(*sizes)
    assert shape is None
    assert list(map(str, faults)) == [line]


@pytest.mark.parametrize(
    ("requested", "gpus", "local", "device", "line"),
    [
        ("auto", 0, (0, 1), "cpu", ""),
        ("auto", 2, (1, 2), "cuda:1", ""),
        ("auto", 1, (0, 2), "cpu", ""),  # not a GPU for each rank
        ("cpu", 2, (0, 1), "cpu", ""),
        ("cuda", 2, (1, 2), "cuda:1", ""),
        ("cuda", 0, (0, 1), "cpu", "device: cuda: PyTorch finds no GPU here; expected auto or cpu"),
        ("cuda", 1, (0, 2), "cpu", "device: cuda: 2 ranks for 1 GPU here; expected one GPU per rank, or cpu"),
    ],
)
def test_the_device_of_a_rank(
    monkeypatch: pytest.MonkeyPatch, requested: str, gpus: int, local: tuple[int, int], device: str, line: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    environment = LaunchEnvironment(local_rank=local[0], local_world_size=local[1])
    chosen, faults = choose_device(requested, environment)
    assert str(chosen) == device
    assert list(map(str, faults)) == [line] * bool(line)


def test_one_thread_inside_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(LaunchEnvironment(), MeshShape(1, 1, 1), torch.device("cpu"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        with ranks:
            assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        with ranks:
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_single_process_gathers_from_itself() -> None:
    with Ranks(LaunchEnvironment(), MeshShape(1, 1, 1), torch.device("cpu")) as ranks:
        assert ranks.gather_elements([0.25, 0.5, 1 / 3], [[2, 0, 1]]) == [0.5, 1 / 3, 0.25]
        assert ranks.broadcast_object({"a": 1}) == {"a": 1}
    assert not torch.distributed.is_initialized()


def test_ranks_that_each_see_another_gpu_take_them_and_agree() -> None:
    bound = [GpuView(rank, 2, 1, [f"GPU-{rank}"]) for rank in (0, 1)]  # as srun --gpus-per-task=1 shows them
    shared = [GpuView(rank, 2, 1, ["GPU-0"]) for rank in (0, 1)]
    without = GpuView(0, 1, 0)  # a host that has none

    def device(requested: str, *views: GpuView) -> str:
        return str(choose_device(requested, LaunchEnvironment(rank=1, world_size=2, gpus=views))[0])

    assert [device("auto", *bound), device("auto", *reversed(bound)), device("cuda", *bound)] == ["cuda:0"] * 3
    assert [device("auto", *shared), device("cuda", *shared)] == ["cpu"] * 2
    pair = [GpuView(rank, 2, 2) for rank in (1, 0)]
    assert device("auto", *pair) == "cuda:1"
    assert device("auto", *pair, without) == "cpu"  # all ranks take the same kind
    environment = LaunchEnvironment(world_size=3, gpus=(*pair, without))
    (remark,) = set_up("auto", Arithmetic(), environment).remarks
    assert remark.startswith(
        "ALL GPUs STAY UNUSED and the CPUs compute: not every rank has a GPU of its own (1 rank for 0"
    )
    assert set_up("cpu", Arithmetic(), environment).remarks == []
