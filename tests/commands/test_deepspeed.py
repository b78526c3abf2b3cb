"""Retraining under DeepSpeed: on two ranks against plain PyTorch, resumed, its files, and what is refused.

This file is also the script that the ranks run: `python test_deepspeed.py FOLDER JOBS...`.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import clean_environment, free_port, start_ranks
from problems import CPU, ONE_RANK, Peculiar, TensorTask, conv_bn, image_task, smoothed_task
from safetensors.torch import load_file
from selection import slow_unless, wanted
from torch import Tensor, nn

from fds_dist.commands.retrain.deepspeed_settings import imported_deepspeed
from fds_dist.commands.retrain.records import Block
from fds_dist.commands.retrain.reporting import Reporter
from fds_dist.commands.retrain.settings import RetrainSettings, read_settings
from fds_dist.commands.retrain.trainer import retrain
from fds_dist.common.faults import UserError
from fds_dist.config import Config
from fds_dist.distributed.environment import read_environment
from fds_dist.distributed.mesh import MeshShape, Ranks
from fds_dist.models import build_model
from fds_dist.schedule.schedule import Schedule
from fds_dist.tasks.base import Task

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason='deepspeed is not installed: pip install "fds-dist[deepspeed]"',
)

EPOCHS = 3
"""Of 5 steps."""
SCHEDULES = {
    "sgd": Schedule(
        5 * EPOCHS,
        {"lr": (0.3, 0.1, 0.2), "momentum": (0.5, 0.9, 0.0), "weight_decay": (1e-3, 0.0, 1e-2)},
        optimizer={"name": "sgd", "nesterov": False},
    ),
    "adamw": Schedule(
        5 * EPOCHS,
        {"lr": (0.01, 0.003), "beta1": (0.9, 0.5, 0.8), "beta2": (0.99, 0.999), "weight_decay": (0.1, 0.0, 0.01)},
        {"eps": 1e-6},
        {"name": "adamw"},
    ),
}
GROUPED = Schedule(
    5 * EPOCHS,
    {"lr.bias": (0.05, 0.3), "lr.rest": (0.3, 0.1), "momentum": (0.5, 0.9), "smoothing": (0.0, 0.3)},
    optimizer={"name": "sgd", "nesterov": True, "groups": {"bias": "bias", "rest": ".*"}},
)


def zero(stage: int, **more: Any) -> dict[str, Any]:
    """The section for one stage; at 3 each weight is really split, which it otherwise is from 100,000 elements on."""
    split = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return {"zero_optimization": {"stage": stage, **split, **more}}


BF16 = {"bf16": {"enabled": True}}
ON_HOST = {"device": "cpu"}
SECTIONS: dict[str, dict[str, Any]] = {
    **{f"{stage}": zero(stage) for stage in (0, 1, 2, 3)},
    "2-offload": zero(2, offload_optimizer=ON_HOST),
    "3-offload": zero(3, offload_optimizer=ON_HOST, offload_param=ON_HOST),
    **{f"{stage}-bf16": {**zero(stage), **BF16} for stage in (0, 1, 3)},
}


def peculiar_task(smoothed: bool = False) -> TensorTask:
    return smoothed_task(Peculiar) if smoothed else image_task(Peculiar)


class Losses(Reporter):
    """A reporter that keeps the training losses, of the first rank's part of each batch, and the notes."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.notes: list[str] = []

    def block(self, block: Block) -> None:
        self.losses.append(block.train_loss)

    def note(self, message: str) -> None:
        self.notes.append(message)


class Interrupted(TensorTask):
    """Ends on all ranks in the epoch `at`."""

    at = 1

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if epoch == self.at:
            raise KeyboardInterrupt
        return super().train_batches(outer_step, epoch)


# What the ranks do


def settings_of(section: Mapping[str, Any], epochs: float = EPOCHS, **more: Any) -> RetrainSettings:
    return RetrainSettings(engine="deepspeed", epochs=epochs, deepspeed=dict(section), **more)


def trained(task: Task, schedule: Schedule, settings: RetrainSettings, ranks: Ranks, folder: Path) -> list[float]:
    """The loss of each step; also in `losses.json`."""
    told = Losses()
    build: Callable[[int], nn.Module] = task.build_model  # type: ignore[attr-defined]
    retrain(lambda seed: task, build, schedule, settings, ranks, folder, [told])
    if ranks.is_first:
        (folder / "losses.json").write_text(json.dumps(told.losses))
        (folder / "notes.json").write_text(json.dumps(told.notes))
    return told.losses


def error_of(run: Callable[[], object]) -> str:
    try:
        run()
    except UserError as error:
        return str(error)
    return "nothing was raised"


def kept(name: str, optimizer: str) -> bool:
    """Whether CI trains by a section with an optimizer: one section with the first, the next with the second."""
    return list(SCHEDULES)[list(SECTIONS).index(name) % 2] == optimizer


def stages_job(ranks: Ranks, folder: Path) -> None:
    asked = json.loads((folder / "wanted.json").read_text())
    for name, optimizer in asked["trained"]:
        settings = settings_of(SECTIONS[name])
        trained(peculiar_task(), SCHEDULES[optimizer], settings, ranks, folder / f"{optimizer}-{name}")
    for clip, stage in asked["clipped"]:
        settings = settings_of(zero(stage), **{clip: 0.05})
        trained(peculiar_task(), SCHEDULES["sgd"], settings, ranks, folder / f"{clip}-{stage}")
    for stage in (0, 2, 3):
        trained(peculiar_task(True), GROUPED, settings_of(zero(stage)), ranks, folder / f"groups-{stage}")
    for name in ("2", "3", "3-bf16"):
        trained(image_task(conv_bn), SCHEDULES["sgd"], settings_of(SECTIONS[name]), ranks, folder / f"norm-{name}")
    trained(image_task(conv_bn), SCHEDULES["sgd"], RetrainSettings(epochs=EPOCHS), ranks, folder / "norm-ddp")


def resume_job(ranks: Ranks, folder: Path) -> None:
    for optimizer, name in RESUMED:
        whole, cut = (folder / f"{optimizer}-{name}-{part}" for part in ("whole", "cut"))
        settings = settings_of(SECTIONS[name], 2)
        trained(peculiar_task(), SCHEDULES[optimizer], settings, ranks, whole)
        try:
            task = peculiar_task()
            trained(Interrupted(task.build, task.train, task.val), SCHEDULES[optimizer], settings, ranks, cut)
        except KeyboardInterrupt:
            trained(peculiar_task(), SCHEDULES[optimizer], settings, ranks, cut)
    again = folder / "sgd-3-cut"

    def refused(settings: RetrainSettings) -> str:
        return error_of(lambda: trained(peculiar_task(), SCHEDULES["sgd"], settings, ranks, again))

    errors = [refused(RetrainSettings(epochs=2)), refused(settings_of(SECTIONS["2"], 2))]
    if ranks.is_first:
        (changed,) = (again / "0").glob("deepspeed-*/zero_pp_rank_1_*optim_states.pt")
        content = bytearray(changed.read_bytes())
        content[len(content) // 2] ^= 1
        changed.write_bytes(content)
    torch.distributed.barrier()
    errors.append(refused(settings_of(SECTIONS["3"], 2)))
    if ranks.is_first:
        (folder / "errors.json").write_text(json.dumps(errors))


RESUMED = [("sgd", "0"), ("sgd", "2"), ("sgd", "3"), ("sgd", "2-offload"), ("adamw", "1"), ("adamw", "3-bf16")]
MEMORY_RUNS = {
    "ddp": RetrainSettings(),
    # Buffers well below the size of the network: DeepSpeed's own defaults are meant for larger ones.
    "zero3": settings_of(
        zero(
            3,
            reduce_bucket_size=4e6,
            stage3_prefetch_bucket_size=2e6,
            stage3_max_live_parameters=4e6,
            stage3_max_reuse_distance=0,
        ),
        1,
    ),
}


def wide_network() -> nn.Module:
    return build_model("wrn-28-10", {}, input_shape=(3, 32, 32), classes=10, seed=0)


class Measured(TensorTask):
    """Two images of 32 pixels per batch, four batches; after each step but the first, what the process holds."""

    def __init__(self) -> None:
        inputs = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        data = inputs, torch.arange(8) % 10
        super().__init__(wide_network, data, data, batch_size=2)
        self.before, self.peak = memory("VmRSS"), 0

    def train_batches(self, outer_step: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(super().train_batches(outer_step, epoch)):
            if index == 1:
                Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            if index == 3:
                self.peak = memory("VmHWM") - self.before
            yield batch


def memory(which: str) -> int:
    """Bytes that this process has in memory now (VmRSS), or had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(which))) * 1024


def memory_job(ranks: Ranks, folder: Path) -> None:
    """One engine per launch, which the folder names: what another one leaves behind would count too."""
    task = Measured()
    trained(task, SCHEDULES["sgd"], MEMORY_RUNS[folder.name], ranks, folder)
    (folder / f"memory-{ranks.rank}.json").write_text(json.dumps(task.peak))


def main(folder: Path, *jobs: str) -> None:
    environment = read_environment()
    with Ranks(environment, MeshShape(1, environment.world_size, 1), CPU) as ranks:
        imported_deepspeed()
        gc.freeze()  # or each engine looks through all that is imported
        for job in jobs:
            {"stages": stages_job, "resume": resume_job, "memory": memory_job}[job](ranks, folder)


# The tests


def launched(jobs: Sequence[str], folder: Path, world_size: int = 2, **environment: str) -> None:
    folder.mkdir(exist_ok=True)
    environment = clean_environment(OMP_NUM_THREADS="1", **environment)
    ended = start_ranks([__file__, str(folder), *jobs], world_size, [folder], environment)
    assert [(rank.status, rank.out, rank.err) for rank in ended] == [(0, "", "")] * world_size


@pytest.fixture(scope="module")
def stages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have written in both jobs: they import DeepSpeed once."""
    path = tmp_path_factory.mktemp("two")
    asked = {"trained": wanted(request, "name", "optimizer"), "clipped": wanted(request, "clip", "stage")}
    (path / "wanted.json").write_text(json.dumps(asked))
    launched(["stages", "resume"], path)
    return path


@pytest.fixture(scope="module")
def resumed(stages: Path) -> Path:
    return stages


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "0" / "last.safetensors")


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "losses.json").read_text())


def plain_torch(
    schedule: Schedule, task: TensorTask, clip: Callable[[list[nn.Parameter]], object] = lambda parameters: None
) -> tuple[list[float], nn.Module]:
    """Losses of the first half of each batch, as the first of two ranks has them, and the network at the end; one
    process, whole batches, `torch.optim`, every value set by hand."""
    module = task.build_model(0)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups: dict[str, list[nn.Parameter]] = {"bias": [], "rest": []}
    for parameter in parameters:
        groups["bias" if "bias" in names[id(parameter)] else "rest"].append(parameter)
    split = [{"params": part} for part in groups.values()]
    nesterov = bool(schedule.optimizer.get("nesterov"))
    adam = schedule.optimizer["name"] == "adamw"
    optimizer = torch.optim.AdamW(split) if adam else torch.optim.SGD(split, lr=0, momentum=0.9, nesterov=nesterov)
    found: list[float] = []
    for step in range(schedule.horizon):
        batches = list(task.train_batches(0, 0))
        x, y = batches[step % len(batches)]
        values = schedule.at(step)
        for group, name in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = values[f"lr.{name}"] if f"lr.{name}" in values else values["lr"]
            group["weight_decay"] = values.get("weight_decay", 0.0)
            if adam:
                group["betas"], group["eps"] = (values["beta1"], values["beta2"]), values["eps"]
            else:
                group["momentum"] = values["momentum"] or 1e-300  # at 0 it would drop its velocity
        more = ({"smoothing": torch.tensor(values["smoothing"])},) if "smoothing" in values else ()
        output = module(x.float())
        found.append(task.loss(output[: len(x) // 2], y[: len(x) // 2], *more).item())
        optimizer.zero_grad()
        task.loss(output, y, *more).backward()
        clip(parameters)
        optimizer.step()
    return found, module


def largest_difference(found: list[float], expected: list[float]) -> float:
    return max(abs(here - there) for here, there in zip(found, expected, strict=True))


@needs_deepspeed
@pytest.mark.parametrize(("name", "optimizer"), slow_unless(kept, product(SECTIONS, SCHEDULES)))
def test_every_stage_trains_as_plain_torch_does(stages: Path, optimizer: str, name: str) -> None:
    """Largest difference of the losses over 15 steps. float32: measured 4e-7 for every stage, sums over samples in
    another order. bfloat16: 8 bits of mantissa, measured below .02. An optimizer that missed one change of one
    hyperparameter differs by 1e-4 (the last change of AdamW's decay) to .3."""
    expected, module = plain_torch(SCHEDULES[optimizer], peculiar_task())
    found = losses(stages / f"{optimizer}-{name}")
    assert len(found) == 5 * EPOCHS
    low = name.endswith("bf16")
    assert largest_difference(found, expected) < (0.03 if low else 2e-6)
    kept = weights(stages / f"{optimizer}-{name}")
    reference = module.state_dict()
    assert kept.keys() == reference.keys()
    for key, tensor in kept.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, reference[key], rtol=0, atol=0.05 if low else 1e-5)


@needs_deepspeed
@pytest.mark.parametrize(
    ("clip", "stage"),
    slow_unless(
        lambda clip, stage: (clip == "clip_norm") == (stage != 2),  # parts clip numbers alike; norms are of all parts
        product(("clip_gradient", "clip_norm"), (0, 2, 3)),
    ),
)
def test_gradients_are_clipped_after_the_mean_over_ranks(stages: Path, clip: str, stage: int) -> None:
    """2e-6 as above; DeepSpeed adds 1e-6 to the norm elsewhere than PyTorch, which is 1e-5 of the gradients here."""

    def clipped(parameters: list[nn.Parameter]) -> None:
        if clip == "clip_gradient":
            nn.utils.clip_grad_value_(parameters, 0.05)
        else:
            nn.utils.clip_grad_norm_(parameters, 0.05)

    expected, _ = plain_torch(SCHEDULES["sgd"], peculiar_task(), clipped)
    assert largest_difference(losses(stages / f"{clip}-{stage}"), expected) < (
        2e-6 if clip == "clip_gradient" else 1e-4
    )
    assert largest_difference(expected, plain_torch(SCHEDULES["sgd"], peculiar_task())[0]) > 0.01


@needs_deepspeed
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_parameter_groups_and_the_loss_s_own_hyperparameter(stages: Path, stage: int) -> None:
    """2e-6 as above, Nesterov here."""
    expected, _ = plain_torch(GROUPED, peculiar_task(True))
    assert largest_difference(losses(stages / f"groups-{stage}"), expected) < 2e-6


@needs_deepspeed
@pytest.mark.parametrize("name", ["2", "3", "3-bf16"])
def test_batch_norm_trains_as_with_ddp(stages: Path, name: str) -> None:
    """Whose statistics are those of each rank's part too. float32 rounding, which 15 steps with batch-norm amplify."""
    expected = losses(stages / "norm-ddp")
    assert largest_difference(losses(stages / f"norm-{name}"), expected) < (0.1 if "bf16" in name else 1e-4)
    kept, reference = weights(stages / f"norm-{name}"), weights(stages / "norm-ddp")
    for key in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        torch.testing.assert_close(kept[key], reference[key], rtol=0.05 if "bf16" in name else 1e-4, atol=1e-2)
    told = json.loads((stages / f"norm-{name}" / "notes.json").read_text())
    assert any("running statistics are bfloat16" in note for note in told) == ("bf16" in name)


@needs_deepspeed
@pytest.mark.parametrize(("optimizer", "section"), RESUMED)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(resumed: Path, optimizer: str, section: str) -> None:
    whole, cut = (resumed / f"{optimizer}-{section}-{part}" for part in ("whole", "cut"))
    assert len(losses(cut)) == 5 and losses(cut) == losses(whole)[5:]
    expected, found = weights(whole), weights(cut)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert len(list((whole / "0").glob("deepspeed-*"))) == 1  # older checkpoints are gone


@needs_deepspeed
def test_what_a_checkpoint_cannot_go_on_with(resumed: Path) -> None:
    with_ddp, other_stage, damaged = json.loads((resumed / "errors.json").read_text())
    assert "holds a retraining with engine=deepspeed" in with_ddp and "restart=true" in with_ddp
    assert "holds a retraining with another deepspeed" in other_stage
    assert "is damaged (zero_pp_rank_1_mp_rank_00_optim_states.pt)" in damaged and "restart=true" in damaged


@needs_deepspeed
def test_one_process_trains_and_other_world_sizes_are_refused(resumed: Path, tmp_path: Path) -> None:
    """1e-5: sums over whole batches instead of halves, float32, 10 steps."""
    settings, task = settings_of(SECTIONS["2"], 2), peculiar_task()
    error = error_of(lambda: trained(task, SCHEDULES["sgd"], settings, ONE_RANK, resumed / "sgd-2-whole"))
    assert "was written by 2 ranks, and there are 1 now" in error and "restart=true" in error
    trained(task, SCHEDULES["sgd"], settings, ONE_RANK, tmp_path)
    assert not torch.distributed.is_initialized()
    for key, tensor in weights(resumed / "sgd-2-whole").items():
        torch.testing.assert_close(weights(tmp_path)[key], tensor, rtol=0, atol=1e-5)


@needs_deepspeed
@pytest.mark.parametrize("name", ["0", "2", "3"])
def test_micro_batches_train_as_whole_batches(name: str, tmp_path: Path) -> None:
    """1e-5: float32 sums in parts, 10 steps; three micro-batches for two would be off by a third."""
    linear = nn.functional.linear
    task, schedule = peculiar_task(), SCHEDULES["sgd"]
    whole = trained(task, schedule, settings_of(SECTIONS[name], 2), ONE_RANK, tmp_path / "whole")
    parts = trained(task, schedule, settings_of(SECTIONS[name], 2, accumulate=3), ONE_RANK, tmp_path / "parts")
    assert parts == pytest.approx(whole, rel=1e-5)
    for key, tensor in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "parts")[key], tensor, rtol=0, atol=1e-5)
    assert nn.functional.linear is linear  # the next search in this process differentiates it twice


@needs_deepspeed
def test_weights_load_without_deepspeed(stages: Path, tmp_path: Path) -> None:
    """In a process that cannot import it."""
    script = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from safetensors.torch import load_file; from problems import Peculiar\n"
        "module = Peculiar(); module.load_state_dict(load_file(sys.argv[1])); print(module.last.weight.sum().item())"
    )
    path = stages / "groups-3" / "0" / "best.safetensors"
    (ended,) = start_ranks(["-c", script, str(path)], 1, [tmp_path])
    assert ended.err == "" and float(ended.out) == load_file(path)["last.weight"].sum().item()


@pytest.mark.slow
@needs_deepspeed
def test_memory_per_rank_is_below_ddp_s(tmp_path: Path) -> None:
    """WRN-28-10, two ranks, four steps. DDP holds weights, gradients, velocity and its buckets: 4·4·36.5 MB = 584 MB;
    ZeRO-3 half of weights, master weights, gradients and velocity, 292 MB, and for a moment a gathered layer with its
    gradients. Both have activations and the libraries' own. Measured at the peak: 722 MB and 655 MB."""
    peaks = {}
    for name in MEMORY_RUNS:
        # Above 1 MiB memory is given back when a tensor goes; glibc would keep holes of up to 32 MiB.
        launched(["memory"], tmp_path / name, MALLOC_MMAP_THRESHOLD_=str(2**20))
        peaks[name] = [json.loads((tmp_path / name / f"memory-{rank}.json").read_text()) for rank in (0, 1)]
    assert max(peaks["zero3"]) < min(peaks["ddp"])
    assert largest_difference(losses(tmp_path / "zero3"), losses(tmp_path / "ddp")) < 1e-3  # four float32 steps


# Settings


def faults_of(*overrides: str) -> list[str]:
    with pytest.raises(UserError) as error:
        read_settings(["engine=deepspeed", *overrides])
    return [str(fault) for fault in error.value.faults]


@needs_deepspeed
def test_section_from_overrides_and_files(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(
        json.dumps({"train_batch_size": "auto", "zero_optimization": {"stage": 2, "overlap_comm": "auto"}})
    )
    (tmp_path / "ds.yaml").write_text("bf16: {enabled: true}\nzero_optimization: {stage: 1}\n")
    given = ["engine=deepspeed", "deepspeed.zero_optimization.stage=3", "deepspeed.bf16.enabled=true"]
    assert read_settings(given).deepspeed == {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    from_json = read_settings(["engine=deepspeed", f"deepspeed={tmp_path}/ds.json", "deepspeed.bf16.enabled=true"])
    assert from_json.deepspeed == {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
    from_yaml = read_settings([f"deepspeed={tmp_path}/ds.yaml", "deepspeed.zero_optimization.stage=3", given[0]])
    assert from_yaml.deepspeed == {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
    assert read_settings(["engine=deepspeed"]).deepspeed == {}


@needs_deepspeed
def test_all_faults_of_the_section_at_once(tmp_path: Path) -> None:
    found = faults_of(
        "deepspeed.train_batch_size=8",
        "deepspeed.optimizer.type=Adam",
        "deepspeed.gradient_clipping=1",
        "deepspeed.fp16.enabled=true",
        "deepspeed.zero_optimisation.stage=3",
        "deepspeed.zero_optimization.stag=3",
        "deepspeed.zero_optimization.overlap_comm=maybe",
        "deepspeed.zero_optimization.offload_param.device=cpu",
        "deepspeed.bf16.enable=true",
        "deepspeed.prescale_gradients=1",
        "mixed_precision=bf16",
        "epoch=3",
    )
    assert len(found) == 12
    expected = [
        ("deepspeed.train_batch_size: ", "task.batch_size"),
        ("deepspeed.optimizer: ", "inner.optimizer"),
        ("deepspeed.gradient_clipping: ", "clip_norm=NUMBER"),
        ("deepspeed.fp16: ", "deepspeed.bf16.enabled=true"),
        ("deepspeed.zero_optimisation: unknown key", "did you mean deepspeed.zero_optimization?"),
        ("deepspeed.zero_optimization.stag: unknown key", "did you mean deepspeed.zero_optimization.stage?"),
        ("deepspeed.zero_optimization.overlap_comm: 'maybe' is not valid", ""),
        ("deepspeed.zero_optimization.offload_param: has no effect on stage 0", "stage=3"),
        ("deepspeed.bf16.enable: unknown key", "did you mean deepspeed.bf16.enabled?"),
        ("deepspeed.prescale_gradients: 1 is a whole number", "true or false"),
        ("mixed_precision: ", "deepspeed.bf16.enabled=true"),
        ("epoch: unknown key", "did you mean epochs?"),
    ]
    for begin, part in expected:
        assert [line for line in found if line.startswith(begin) and part in line], (begin, found)


@needs_deepspeed
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["deepspeed=nothing.json"], "deepspeed: nothing.json: No such file"),
        (["deepspeed=3"], "deepspeed: 3 is a whole number; expected a mapping, or the path of a JSON or YAML file"),
        (["deepspeed.bf16=true", "deepspeed.bf16.enabled=true"], "deepspeed.bf16.enabled: bf16 is true"),
        (["dtype=float64"], "dtype: ZeRO does not support float64; expected float32"),
        (["deepspeed.zero_optimization.stage=4"], "deepspeed.zero_optimization.stage: 4 is not valid"),
        (
            ["deepspeed.zero_optimization={stage: 3, offload_optimizer: {device: nvme}}"],
            "deepspeed.zero_optimization.offload_optimizer.device: 'nvme' is not supported by retrain",
        ),
    ],
)
def test_faults_of_settings(overrides: list[str], expected: str) -> None:
    assert any(line.startswith(expected) for line in faults_of(*overrides)), faults_of(*overrides)


def test_the_section_needs_the_engine() -> None:
    with pytest.raises(UserError, match="deepspeed: has no effect with engine=ddp; expected engine=deepspeed"):
        read_settings(["deepspeed.bf16.enabled=true"])


def test_without_deepspeed_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    (line,) = faults_of("deepspeed.zero_optimization.stage=3")
    assert line == 'engine: deepspeed is not installed; expected pip install "fds-dist[deepspeed]", or engine=ddp'
    assert len(faults_of("deepspeed.scheduler.type=x")) == 2


# The launcher


@needs_deepspeed
@pytest.mark.parametrize("command", [pytest.param("check", marks=pytest.mark.slow), "optimize"])  # started alike
def test_deepspeed_launcher_starts_commands(command: str, tmp_path: Path) -> None:
    """On two CPU ranks. The launcher wants a folder with ssh's settings for nothing, and the PATH of its Python."""
    config = {
        "task": {"name": "own_tasks:blobs"},
        "inner": {"epochs": 1},
        "hyperparameters": {"lr": {"init": 0.1, "step": 0.1, "buckets": 2}},
        "outer": {"optimizer": "sign", "steps": 1},
        "output_dir": str(tmp_path / "runs"),
        "name": "run",
    }
    Config.model_validate(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    environment = clean_environment(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    (ended,) = start_ranks([*launcher, "--module", "fds_dist", command, "config.json"], 1, [tmp_path], environment)
    assert ended.status == 0, ended.out + ended.err
    if command == "check":
        assert "2 ranks" in ended.out
    else:
        line = json.loads((tmp_path / "runs" / "run" / "history.jsonl").read_text().splitlines()[0])
        assert line["world_size"] == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
