"""The driver as the LR scheduler of Lightning, Hugging Face's Trainer and Accelerate, which are no dependencies.

    pip install -c constraints.txt lightning transformers accelerate
    python -m pytest tests/schedule/test_frameworks.py

Every test compares with a loop of one's own over the batches that the framework trained on.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fds_dist
from fds_dist.common.faults import UserError
from fds_dist.common.vision import import_torchvision
from fds_dist.schedule.schedule import Schedule

ACCUMULATED = 2  # batches per optimizer step
STEPS = 12  # optimizer steps
STOP = 5  # where an interrupted training stops
SCHEDULE = Schedule(
    30,
    {"lr": (0.1, 0.3, 0.05), "momentum": (0.0, 0.9), "weight_decay": (0.0, 1e-3, 1e-2)},
    optimizer={"name": "sgd", "nesterov": False},
)


def dataset() -> TensorDataset:
    """24 batches of 4."""
    x = torch.randn(4 * ACCUMULATED * STEPS, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).double()


class Record:
    """What an optimizer has been through: batches, settings and weights of each of its steps."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.settings: list[dict[str, float]] = []
        self.weights: list[Tensor] = []

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_post_hook(lambda *_: self._keep(optimizer))

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        (group,) = optimizer.param_groups
        self.settings.append({name: group[name] for name in SCHEDULE.values})
        self.weights.append(torch.cat([parameter.detach().flatten() for parameter in group["params"]]))

    def check(self) -> None:
        """All is as in a plain loop over the same batches under the same schedule."""
        model, plain = network(), Record()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        plain.watch(optimizer)
        driver = SCHEDULE.attach(optimizer, horizon=STEPS)
        for index, (x, y) in enumerate(self.batches):
            (F.cross_entropy(model(x), y) / ACCUMULATED).backward()
            if index % ACCUMULATED == ACCUMULATED - 1:
                optimizer.step()
                driver.step()
                optimizer.zero_grad()
        assert len(plain.settings) == STEPS
        assert self.settings == plain.settings
        for found, expected in zip(self.weights, plain.weights, strict=True):
            # The mean over accumulated batches may be rounded in another order.
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    with contextlib.suppress(UserError):  # the frameworks import torchvision where it is installed
        import_torchvision()
    SCHEDULE.save(tmp_path / "schedule.json")
    return tmp_path


# --- Lightning ---


def lightning_training(run_dir: Path, record: Record, stop: int | None = None, checkpoint: Path | None = None) -> None:
    """Trains to the end of an epoch, or from `checkpoint` on, or to `stop` optimizer steps with a checkpoint there."""
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks", reason="Lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            record.batches.append(batch)
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
            record.watch(optimizer)
            horizon = self.trainer.estimated_stepping_batches
            driver = fds_dist.load_schedule(run_dir).attach(optimizer, horizon)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": driver, "interval": "step"}}

        def on_train_batch_end(self, *_: Any) -> None:
            self.trainer.should_stop = self.global_step == stop

    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision="64-true",
        max_epochs=1,
        accumulate_grad_batches=ACCUMULATED,
        callbacks=[callbacks.ModelCheckpoint(run_dir, "stopped", every_n_train_steps=STOP)] if stop else [],
        enable_checkpointing=bool(stop),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), DataLoader(dataset(), batch_size=4), ckpt_path=checkpoint)


def test_lightning(run_dir: Path) -> None:
    record = Record()
    lightning_training(run_dir, record)
    record.check()


def test_lightning_from_a_checkpoint(run_dir: Path) -> None:
    record = Record()
    lightning_training(run_dir, record, stop=STOP)
    assert len(record.settings) == STOP
    lightning_training(run_dir, record, checkpoint=run_dir / "stopped.ckpt")
    record.check()


# --- Hugging Face ---


def hugging_face_training(run_dir: Path, record: Record, stop: int | None = None, resume: bool = False) -> Any:
    """Trains, or from the beginning to `stop` optimizer steps; returns the trainer."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            record.batches.append((x, labels))
            return {"loss": F.cross_entropy(self.network(x), labels)}

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = control.should_save = state.global_step == stop

    model = Model()
    args = transformers.TrainingArguments(
        output_dir=str(run_dir / "trainer"),
        max_steps=STEPS,
        max_grad_norm=0,
        gradient_accumulation_steps=ACCUMULATED,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    record.watch(optimizer)
    driver = fds_dist.load_schedule(run_dir).attach(optimizer, horizon=args.max_steps)
    data = [{"x": x, "labels": y} for x, y in dataset()]
    trainer = transformers.Trainer(model, args, train_dataset=data, optimizers=(optimizer, driver), callbacks=[Stop()])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_hugging_face_trainer(run_dir: Path) -> None:
    record = Record()
    trainer = hugging_face_training(run_dir, record)
    record.check()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == [settings["lr"] for settings in record.settings]


def test_hugging_face_trainer_from_a_checkpoint(run_dir: Path) -> None:
    record = Record()
    hugging_face_training(run_dir, record, stop=STOP)
    assert len(record.settings) == STOP
    hugging_face_training(run_dir, record, resume=True)
    record.check()


# --- Accelerate ---


def accelerate_training(run_dir: Path, record: Record, stop: int | None = None, resume: bool = False) -> None:
    """Trains, or from the beginning to `stop` optimizer steps, or on from the state that was saved there."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    record.watch(optimizer)
    driver = fds_dist.load_schedule(run_dir).attach(optimizer, horizon=STEPS)
    model, optimizer, loader, driver = accelerator.prepare(
        model, optimizer, DataLoader(dataset(), batch_size=4), driver
    )
    if resume:
        accelerator.load_state(run_dir / "state")
        loader = accelerator.skip_first_batches(loader, STOP * ACCUMULATED)
    for x, y in loader:
        record.batches.append((x, y))
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            driver.step()
            optimizer.zero_grad()
        if len(record.settings) == stop:
            accelerator.save_state(run_dir / "state")
            return


@pytest.mark.parametrize("interrupted", [False, True], ids=["in one go", "from a saved state"])
def test_accelerate(run_dir: Path, interrupted: bool) -> None:
    record = Record()
    if interrupted:
        accelerate_training(run_dir, record, stop=STOP)
        assert len(record.settings) == STOP
    accelerate_training(run_dir, record, resume=interrupted)
    record.check()
