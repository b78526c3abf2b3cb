"""What trains one network on all ranks, behind one interface. Every method is called alike on every rank."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from fds_dist.commands.retrain.ddp import DDPEngine
from fds_dist.commands.retrain.deepspeed_engine import DeepSpeedEngine
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.distributed.mesh import Ranks
from fds_dist.schedule.schedule import Schedule


class Engine(Protocol):
    """A network in training with its optimizer."""

    @property
    def optimizer(self) -> Optimizer:
        """Its parameter groups take the schedule's values before each step."""
        ...

    @property
    def notes(self) -> list[str]:
        """What a person should know."""
        ...

    def step(self, inputs: Tensor, loss_of: Callable[[Any], Tensor], weight: float) -> Tensor:
        """One optimizer step with the gradient of mean_ranks(weight · loss_of(network(inputs))), clipped as the
        settings say; returns this rank's `loss_of`."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Within the block the network is in evaluation mode, with the first rank's buffers, and records no graph."""
        ...

    def predict(self, inputs: Tensor) -> Any:
        """The network's output; every rank asks for as many."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Copies of all weights and buffers by name, in host memory, on the first rank; nothing on the others."""
        ...

    def save(self, path: Path, progress: dict[str, Any]) -> None:
        """Writes all that is needed to go on; `progress` are JSON values."""
        ...

    def load(self, path: Path, accept: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """Goes on where `save` stood and returns its `progress`; None, and nothing happens, where there is no file.

        `accept` sees the progress before anything is changed; what it raises is raised.

        Raises:
            UserError: the file is damaged, or of another network.
        """
        ...

    def close(self) -> None:
        """Gives back what it holds; it is not used afterwards."""
        ...


EngineMaker = Callable[[nn.Module, Schedule, RetrainSettings, Ranks], Engine]

ENGINES: dict[str, EngineMaker] = {"ddp": DDPEngine, "deepspeed": DeepSpeedEngine}
"""By name in the settings."""
