"""LoRA by peft: only the adapters train, and they come back: `python -m pytest -m zoo tests/models/test_lora.py`."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from own_tasks import CLASSES, blobs
from safetensors.torch import load_file
from torch import Tensor, nn

import fds_dist
from fds_dist.build import build
from fds_dist.common.vision import import_torchvision
from fds_dist.config import read_draft
from fds_dist.distributed.environment import LaunchEnvironment
from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.estimators.reverse import estimate_reverse
from fds_dist.inner.run import InnerRun

pytestmark = pytest.mark.zoo

ROUNDING = 1e-12
"""Float64: the same derivative over four steps, its sums in another order."""

CONFIG: dict[str, Any] = {
    "task": {"name": "own_tasks:blobs"},
    "dtype": "float64",
    "inner": {"optimizer": "adamw"},
    "outer": {"optimizer": "sign", "steps": 1},
    "hyperparameters": {"lr": {"init": 0.05, "step": 0.02, "buckets": 2}, "weight_decay": {"init": 0.1, "step": 0.1}},
}
VALUES = [0.05, 0.03, 0.1]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"lora_dropout": 0.2},
    "a whole layer beside": {"modules_to_save": ["head"]},
    "biases": {"bias": "lora_only"},
    "rank-stabilized": {"use_rslora": True},
}


class Attends(nn.Module):
    """Attention over the rows of images [B, 1, 6, 6]."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.query, self.value = (nn.Linear(width, 8) for width in (6, 8, 8))
        self.dropout, self.norm, self.head = nn.Dropout(dropout), nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x[:, 0])
        weights = torch.softmax(self.query(hidden) @ hidden.transpose(1, 2), -1)
        return self.head(self.norm(hidden + self.dropout(weights @ self.value(hidden))).mean(1))


@pytest.fixture
def peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    import_torchvision()  # which transformers, below peft, would fail to import beside a torch for CPUs
    return pytest.importorskip("peft")


@pytest.fixture
def adapted(peft: Any) -> Callable[..., Any]:
    def make(base: nn.Module, **options: Any) -> Any:
        return peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["query", "value"], **options))

    return make


@pytest.mark.parametrize("name", OPTIONS)
def test_forward_and_reverse_agree_on_the_adapters_alone(adapted: Callable[..., Any], name: str) -> None:
    """The run's own check against plain PyTorch passes before."""
    module = adapted(Attends(), **OPTIONS[name])
    result = build(read_draft(CONFIG), LaunchEnvironment(), model=module)
    assert any("checked against plain PyTorch" in remark for remark in result.remarks)
    names = result.problem.network(0).layout.names
    trained = ("lora_", "modules_to_save") if "whole" in name else ("lora_", "bias") if name == "biases" else ("lora_",)
    assert len(names) >= 4 and all(any(part in each for part in trained) for each in names)
    run = InnerRun(result.problem, VALUES, 0, 4)
    forward, reverse = estimate_forward(run), estimate_reverse(run)
    assert forward.val_loss == pytest.approx(reverse.val_loss, rel=ROUNDING)
    assert forward.hypergradients == pytest.approx(reverse.hypergradients, rel=ROUNDING)
    assert all(forward.hypergradients)


def test_a_hugging_face_encoder_has_tangents_of_its_adapters(peft: Any) -> None:
    transformers = importlib.import_module("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(**sizes, image_size=6, patch_size=3, num_channels=1, num_labels=CLASSES)
    base = transformers.ViTForImageClassification(config).eval()  # as `from_pretrained` gives it
    options = {"target_modules": r".*(q_proj|v_proj|query|value)", "modules_to_save": ["classifier"]}
    module = peft.get_peft_model(base, peft.LoraConfig(r=2, **options))
    task = blobs()
    task.loss = lambda output, target: nn.functional.cross_entropy(output.logits, target)  # type: ignore[method-assign]
    result = build(read_draft(CONFIG), LaunchEnvironment(), task, module)
    layout = result.problem.network(0).layout
    assert all("lora_" in name or "modules_to_save" in name for name in layout.names)
    assert layout.size < sum(parameter.numel() for parameter in base.parameters()) / 4
    assert any(remark.startswith("stays in evaluation mode, as it was handed in") for remark in result.remarks)


def test_adapters_without_a_gradient_are_refused(adapted: Callable[..., Any]) -> None:
    merged, switched_off, unloaded = (adapted(Attends()) for _ in range(3))
    merged.merge_adapter()
    switched_off.base_model.disable_adapter_layers()
    refusals = {"cut off from the weights": merged, "no parameter that requires a gradient": switched_off}
    for words, module in [*refusals.items(), ("no parameter that requires", unloaded.merge_and_unload())]:
        with pytest.raises(fds_dist.UserError, match=words):
            build(read_draft(CONFIG), LaunchEnvironment(), model=module)


def test_a_gradient_that_is_not_that_of_the_loss_is_refused(adapted: Callable[..., Any]) -> None:
    """DoRA holds a norm constant in the backward pass: its gradient has no symmetric derivative."""
    with pytest.raises(fds_dist.UserError, match="differences of gradients"):
        build(read_draft(CONFIG), LaunchEnvironment(), model=adapted(Attends(), use_dora=True))


@pytest.mark.parametrize("name", ["dropout", "a whole layer beside"])
def test_the_retrained_adapters_come_back(peft: Any, adapted: Callable[..., Any], name: str, tmp_path: Path) -> None:
    base = Attends()
    module = adapted(copy.deepcopy(base), **OPTIONS[name])
    result = fds_dist.optimize(CONFIG, task=blobs(), model=module, progress=False)
    (seed,) = fds_dist.retrain(result.run_dir, ["epochs=2"], task=blobs(), model=module, progress=False).results

    trained = load_file(seed.folder / "last.safetensors")
    frozen = {key: value for key, value in module.state_dict().items() if "lora_" not in key and "to_save" not in key}
    assert all(torch.equal(trained[key], value.double()) for key, value in frozen.items())
    module.load_state_dict(trained)
    module.eval().save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    x, _ = blobs().test_batches()[0]
    plain = base.eval()(x)
    with torch.no_grad():
        assert torch.equal(again(x), module(x))
        assert not torch.allclose(module(x), plain, rtol=1e-3)
