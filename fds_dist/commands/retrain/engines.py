"""The engines that train one network on all ranks, and their interface. Every method is called alike on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from fds_dist.commands.retrain.data import Term
from fds_dist.commands.retrain.ddp import DDPEngine
from fds_dist.commands.retrain.deepspeed_engine import DeepSpeedEngine
from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.distributed.mesh import Ranks
from fds_dist.schedule.schedule import Schedule


class Engine(Protocol):
    """A network and its optimizer, in training."""

    @property
    def optimizer(self) -> Optimizer:
        """The driver sets the schedule's values on its parameter groups before each step."""
        ...

    @property
    def notes(self) -> list[str]:
        """Notes for the user."""
        ...

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is tested and saved: of the settings' `ema`, or of the optimizer."""
        ...

    def step(self, terms: Sequence[Term]) -> list[Tensor]:
        """One optimizer step with the gradient of mean_ranks(Σ_terms weight · loss_of(call(network, inputs))), clipped
        as the settings say; one term has a graph at a time. Returns each term's `loss_of`."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Inside, the network is in evaluation mode with rank 0's buffers, and records no graph."""
        ...

    def predict(self, inputs: Any) -> Any:
        """The network's output, by averaged weights where there are some. Every rank calls this equally often."""
        ...

    def weights(self, trained: bool = False) -> dict[str, Tensor]:
        """Copies of all weights and buffers by name, in host memory, on rank 0; an empty mapping on the others.

        They are those that `predict` uses; or, if `trained`, those in training.
        """
        ...

    def save(self, path: Path, progress: dict[str, Any]) -> Callable[[], None]:
        """Copies everything that `load` needs; `progress` holds JSON values. What it returns writes `path`, on rank 0
        and in any thread."""
        ...

    def load(self, path: Path, accept: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """Restores the state that `save` wrote and returns its `progress`; None, without a change, if there is no file.

        `accept` is called with the progress before anything changes; its exceptions propagate.

        Raises:
            UserError: the file is damaged, or belongs to another network.
        """
        ...

    def close(self) -> None:
        """Releases the engine's resources; the engine is not used afterwards."""
        ...


EngineMaker = Callable[[nn.Module, Schedule, RetrainSettings, Ranks], Engine]

ENGINES: dict[str, EngineMaker] = {"ddp": DDPEngine, "deepspeed": DeepSpeedEngine}
"""Name in the settings → engine."""
