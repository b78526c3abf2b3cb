"""Text as windows of bytes, and the transformer that reads them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from problems import CPU, ONE_RANK

from fds_dist.commands.retrain.data import RetrainData
from fds_dist.commands.verify.derivatives import compare_derivatives
from fds_dist.common.faults import UserError
from fds_dist.models import build_model
from fds_dist.tasks import build_task
from fds_dist.tasks.text import token_accuracy

CONTEXT, BATCH = 8, 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """803 bytes: 100 windows of 8, a target for the last one and two bytes that are left over."""
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(256)) * 3 + bytes(range(35)))
    return path


def windows(batches: object) -> torch.Tensor:
    return torch.cat([x for x, _ in batches])  # type: ignore[attr-defined]


def test_each_target_is_the_next_byte_and_no_window_is_in_two_parts(file: Path) -> None:
    task = build_task("text", {"path": str(file), "context": CONTEXT, "batch_size": BATCH}, seed=0)
    parts = {"train": task.train_batches(3, 0), "val": task.val_batches(3), "test": task.test_batches()}
    found = {name: list(batches) for name, batches in parts.items()}
    content = file.read_bytes()
    for x, y in (batch for batches in found.values() for batch in batches):
        for window, target in zip(x.tolist(), y.tolist(), strict=True):
            assert target[:-1] == window[1:]
            assert bytes([*window, target[-1]]) in content
    sizes = {name: sum(len(x) for x, _ in batches) for name, batches in found.items()}
    assert sizes == {
        "train": 80,
        "val": 9,
        "test": 10,
    }  # 90 of 100 windows, 9 for validation, whole batches of the rest
    assert windows(found["test"])[0, 0] == content[90 * CONTEXT]
    assert task.classes == 256 and task.input_shape == (CONTEXT,)  # type: ignore[attr-defined]


def test_retraining_takes_all_but_the_test_part(file: Path) -> None:
    task = build_task("text", {"path": str(file), "context": CONTEXT, "batch_size": BATCH}, seed=0)
    data = RetrainData(task, CPU)
    assert data.on_all_data and data.has_test and data.steps_per_epoch == 90 // BATCH


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"path": "nowhere.txt"}, ["task.path: nowhere.txt is not a file; expected the path of a text file"]),
        (
            {"path": "nowhere.txt", "context": 0},
            [
                "task.path: nowhere.txt is not a file; expected the path of a text file",
                "task.context: 0 is out of range; expected a whole number of at least 1",
            ],
        ),
        ({"path": "short.txt"}, ["task.path: short.txt has 900 bytes, 7 windows of 128; expected a file of at least"]),
    ],
)
def test_a_wrong_file_or_option_is_named(
    options: dict[str, object], lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_bytes(b"x" * 900)
    with pytest.raises(UserError) as raised:
        build_task("text", options, seed=0)
    assert [str(fault)[: len(line)] for fault, line in zip(raised.value.faults, lines, strict=True)] == lines


def small_transformer(**options: object) -> torch.nn.Module:
    sizes = {"layers": 2, "width": 8, "heads": 2}
    return build_model("transformer", sizes | options, input_shape=(CONTEXT,), classes=256, seed=0)


def test_the_transformer_looks_at_no_later_token() -> None:
    model = small_transformer().double()
    window = torch.randint(256, (1, CONTEXT), generator=torch.Generator().manual_seed(0))
    changed = window.clone()
    changed[0, 5] += 1
    before, after = model(window), model(changed)
    assert before.shape == (1, CONTEXT, 256)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:]).all(-1).any()


def test_an_untrained_transformer_knows_nothing_and_its_answers_are_counted() -> None:
    model = small_transformer()
    x = torch.randint(256, (64, CONTEXT), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    output = model(x)
    loss = torch.nn.functional.cross_entropy(output.flatten(0, 1), x.long().flatten())
    # Every byte about as likely: the logits of small initial weights are small.
    assert loss.item() == pytest.approx(math.log(256), rel=0.01)
    best = output.argmax(-1)
    accuracy = token_accuracy(output, best.to(torch.uint8))["accuracy"]
    assert accuracy.item() == 1.0
    worst = token_accuracy(output, output.argmin(-1).to(torch.uint8))["accuracy"]
    assert worst.item() == 0.0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"width": 9}, "model.width: 9 does not divide among 2 heads; expected a multiple of 2"),
        ({"layers": 0}, "model.layers: 0 is out of range; expected a whole number of at least 1"),
        ({"checkpointing": "yes"}, "model.checkpointing: 'yes' is text; expected true or false"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as raised:
        small_transformer(**options)
    assert [str(fault) for fault in raised.value.faults] == [line]


def test_hypergradients_through_attention_are_verified(file: Path) -> None:
    import fds_dist

    config = {
        "task": {"name": "text", "path": str(file), "context": CONTEXT, "batch_size": BATCH},
        "model": {"name": "transformer", "layers": 1, "width": 8, "heads": 2},
        "inner": {"optimizer": "adamw"},
        "hyperparameters": {
            "lr": {"init": 0.01, "buckets": 2, "step": 0.1, "scale": "log"},
            "weight_decay": {"init": 0.01, "step": 0.1},
        },
        "dtype": "float64",
    }
    built, _ = fds_dist.check(config)
    verification = compare_derivatives(built.problem, 3, ONE_RANK)
    assert verification.passed, verification
    assert len(verification.comparisons) == 3  # both methods and finite differences
