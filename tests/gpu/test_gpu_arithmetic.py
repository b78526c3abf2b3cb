"""What is asked of a GPU's arithmetic: the same bits each time, IEEE float32, and all as before afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_cases import DEVICE, Pooled, images
from launching import clean_environment
from problems import TensorTask
from torch.nn import functional as F

import fds_dist
from fds_dist.common.faults import UserError
from fds_dist.distributed.arithmetic import USED_BEFORE, WORKSPACE, Arithmetic, _Settings, arithmetic_restored

pytestmark = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="shows something of a GPU alone")


def config(**sections: Any) -> dict[str, Any]:
    """Two outer steps of six inner steps in float32."""
    return {
        "task": {"name": "digits", "batch_size": 32},
        "model": {"name": "lenet"},
        "inner": {"steps": 6},
        "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 2}, "momentum": {"init": 0.5, "step": 0.1}},
        "outer": {"optimizer": "sign", "steps": 2, "tolerance": 1e-9},
        "device": DEVICE.type,
        **sections,
    }


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


NETWORKS = {"lenet": {"name": "lenet"}, "wrn": {"name": "wrn-10-1", "dropout": 0.3}}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("estimator", ["forward", "reverse"])
def test_two_runs_have_the_same_bits(network: str, estimator: str) -> None:
    asked = config(model=NETWORKS[network], estimator=estimator)
    first, second = (fds_dist.optimize(asked, [f"name={name}"], progress=False) for name in ("first", "second"))
    assert [record.hypergradients for record in first.history] == [record.hypergradients for record in second.history]
    assert [record.val_loss for record in first.history] == [record.val_loss for record in second.history]


def test_a_search_leaves_the_settings_as_they_were() -> None:
    one = torch.ones(1, device=DEVICE)  # the current GPU is a setting too, once there is one
    before = _Settings.now()
    fds_dist.optimize(config(), progress=False)
    fds_dist.check(config())
    assert _Settings.now() == before
    assert one.device.type == DEVICE.type


@needs_cuda
def test_the_precision_of_float32_is_what_the_config_says() -> None:
    if torch.cuda.get_device_capability(DEVICE) < (8, 0):
        pytest.skip("no TF32 before Ampere")
    x, w = torch.randn(8, 64, 32, 32, device=DEVICE), torch.randn(64, 64, 3, 3, device=DEVICE)
    a = torch.randn(512, 512, device=DEVICE)
    errors = {}
    for precision in ("ieee", "tf32"):
        with arithmetic_restored():
            Arithmetic(precision=precision).set(DEVICE)
            pairs = {
                "conv": (F.conv2d(x, w), F.conv2d(x.double(), w.double())),
                "mm": (a @ a, a.double() @ a.double()),
            }
        errors[precision] = {name: float((ours - exact).norm() / exact.norm()) for name, (ours, exact) in pairs.items()}
    for name in ("conv", "mm"):  # 24 bits of mantissa are 6e-8, 11 bits 5e-4; sums take some of it away
        assert errors["ieee"][name] < 1e-5 < errors["tf32"][name] < 1e-2


@needs_cuda
def test_an_operator_without_a_deterministic_kernel_is_refused_by_name() -> None:
    task = TensorTask(Pooled, images(24, "train"), images(16, "val"))
    asked = config()
    del asked["task"], asked["model"]
    with pytest.raises(UserError, match=r"consistency.mode: .*adaptive_avg_pool2d_backward_cuda has none.*broadcast"):
        fds_dist.optimize(asked, task=task, progress=False)
    assert not torch.are_deterministic_algorithms_enabled()
    result = fds_dist.optimize(asked, ["consistency.mode=broadcast"], task=task, progress=False)
    assert len(result.history) == 2


BEFORE = """
import sys, torch, fds_dist, json
torch.mm(torch.ones(2, 2, device=sys.argv[1]), torch.ones(2, 2, device=sys.argv[1]))
result = fds_dist.check(json.loads(sys.argv[2]))
print("REMARKS", "; ".join(result.built.remarks))
print(torch.are_deterministic_algorithms_enabled())
torch.use_deterministic_algorithms(True)
try:
    torch.mm(torch.ones(2, 2, device=sys.argv[1]), torch.ones(2, 2, device=sys.argv[1]))
    print("possible")
except RuntimeError:
    print("too late")
"""


@needs_cuda
def test_a_process_that_used_the_gpu_before_is_told_what_it_cannot_have() -> None:
    environment = clean_environment()
    environment.pop(WORKSPACE, None)
    command = [sys.executable, "-c", BEFORE, str(DEVICE), json.dumps(config())]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    restored, deterministic_kernels = ended.stdout.splitlines()[-2:]
    assert restored == "False"
    # With CUDA 13 (PyTorch 2.11) it is not too late.
    assert (USED_BEFORE in ended.stdout) == (deterministic_kernels == "too late")


@needs_cuda
def test_another_workspace_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG: :0:0 lets cuBLAS give other bits"):
        fds_dist.check(config())
