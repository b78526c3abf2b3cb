"""`inner.clip_norm` and `inner.ema` from the config to a search, its witness, a retraining and the exported loop."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import conv_bn, flat, image_task, make_problem
from safetensors.torch import load_file
from torch import nn

import fds_dist
from fds_dist.commands.export import snippet
from fds_dist.commands.retrain.settings import read_settings
from fds_dist.common.faults import UserError
from fds_dist.config import load_config
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.run import InnerRun

DECAY, NORM = 0.8, 0.5
CONFIG: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},  # 4 batches per epoch
    "inner": {"steps": 6, "clip_norm": NORM, "ema": DECAY},
    "hyperparameters": {"lr": {"init": 0.1, "step": 0.02, "buckets": 2}, "momentum": {"init": 0.5, "step": 0.1}},
    "outer": {"optimizer": "sign", "steps": 1},
    "dtype": "float64",
    "name": "run",
}
LOOP = {"name": "sgd", "clip_norm": NORM, "ema": DECAY}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def optimize(*overrides: str) -> fds_dist.RunResult:
    return fds_dist.optimize(CONFIG, overrides, progress=False)


def remarks(*overrides: str) -> str:
    return " ".join(fds_dist.check(CONFIG, overrides).built.remarks)


@pytest.mark.parametrize("estimator", ["forward", "reverse", "greedy"])
def test_the_witness_compares_with_torch_s_clipping_and_average(estimator: str) -> None:
    assert "checked against plain PyTorch: 3 steps in float64" in remarks(f"estimator={estimator}")


@pytest.mark.parametrize("key", ["clip_norm", "ema"])
def test_a_witness_that_does_otherwise_refuses(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if key == "ema":
        monkeypatch.setattr("fds_dist.inner.plain_training.averaged_model", lambda module, decay: Ignorant(module))
    else:
        monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda parameters, norm: None)
    with pytest.raises(UserError, match=r"validation loss is|step of"):
        optimize()


class Ignorant:
    """In place of an average: the module itself."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def update_parameters(self, module: nn.Module) -> None: ...


def test_all_derivatives_agree() -> None:
    verification = fds_dist.verify(CONFIG, ["outer.val_batch_norm=running"]).verification
    assert verification.passed and [each.name for each in verification.comparisons] == [
        "forward, jvp",  # double backward has no tangents for running statistics
        "finite differences",
    ]


def test_a_run_says_what_its_schedule_was_learned_for() -> None:
    run = optimize()
    assert run.schedule.optimizer == {"nesterov": False, **LOOP}
    without = optimize("inner.ema=null", "inner.clip_norm=null", "name=plain")
    assert without.schedule.optimizer == {"name": "sgd", "nesterov": False}
    assert without.history[0].hypergradients != run.history[0].hypergradients


def test_compare_validates_the_average_too() -> None:
    methods = ["compare={methods: [fds, greedy], seeds: 1, judge_seeds: 1}"]
    results = [
        fds_dist.compare(CONFIG, [*methods, f"name=ema-{ema}", f"inner.ema={ema}"], progress=False) for ema in (0, 0.9)
    ]
    losses = [result.comparison.runs[0].incumbents[0].own_loss for result in results]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("inner.ema=1", "inner.ema: 1 is out of range; expected a number of at least 0 and below 1, or null"),
        ("inner.clip_norm=0", "inner.clip_norm: 0 is out of range; expected a number above 0, or null"),
    ],
)
def test_what_cannot_be_is_one_line(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config(CONFIG, [override])


# --- retraining ---


def test_a_retraining_tests_and_saves_the_average_and_the_weights_in_training() -> None:
    run = optimize().run_dir
    (result,) = fds_dist.retrain(run, progress=False).results
    averaged, trained = (load_file(result.folder / f"{name}.safetensors") for name in ("last", "last_trained"))
    assert averaged.keys() == trained.keys()
    assert not any(torch.equal(averaged[name], trained[name]) for name in averaged if name.endswith(".weight"))
    assert torch.equal(averaged["1.running_mean"], trained["1.running_mean"])  # buffers are not averaged
    (without,) = fds_dist.retrain(run, ["ema=null", "restart=true"], progress=False).results
    raw = load_file(without.folder / "last.safetensors")
    assert all(torch.equal(raw[name], trained[name]) for name in raw)  # the average only watches
    assert without.final.test_loss != result.final.test_loss


def test_a_retraining_takes_the_run_s_bound_and_decay() -> None:
    settings = read_settings([], load_config(CONFIG))
    assert (settings.steps, settings.clip_norm, settings.ema) == (6, NORM, DECAY)
    assert read_settings(["ema=null"], load_config(CONFIG)).ema is None


def test_deepspeed_refuses_what_it_would_do_otherwise() -> None:
    config = load_config(CONFIG)
    with pytest.raises(UserError, match=r"ema: 0.8 averages whole weights, of which ZeRO gives each rank a part"):
        read_settings(["engine=deepspeed"], config)
    with pytest.raises(UserError, match="DeepSpeed clips the norm first, the search last"):
        read_settings(["engine=deepspeed", "ema=null", "clip_gradient=1.0"], config)


# --- a loop of one's own ---


def test_the_loop_in_an_exported_snippet_is_the_inner_run() -> None:
    """The loop of the head comment, run as it stands, ends at the weights and the average of the search."""
    buckets = {"lr": [0.2, 0.1], "momentum": [0.5]}
    problem = make_problem(image_task(conv_bn), buckets, clip_norm=NORM, ema=DECAY)
    schedule = problem.space.schedule(flat(buckets), 10, problem.optimizer_info)
    code = snippet(schedule)
    loop = [line.removeprefix("#     ") for line in code.splitlines() if line.startswith("#     ")]
    model = problem.build_model(0).double()
    batches = list(islice(problem.batches(0), 10))
    names: dict[str, Any] = {"model": model, "batches": batches, "loss_function": nn.functional.cross_entropy}
    exec(code + "\n".join(loop), names)
    training, _ = run_horizon(InnerRun(problem, flat(buckets), 0, 10))
    for ours, theirs in ((training.state.weights, model), (training.state.optimizer.average, names["average"].module)):
        parts = [parameter.detach().flatten() for parameter in theirs.parameters()]
        # Roundings of 1e-16 through 10 steps.
        torch.testing.assert_close(ours, torch.cat(parts), rtol=1e-12, atol=1e-14)
