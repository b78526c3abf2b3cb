"""The inner optimizer that a config names, checked on the network that it is to train."""

from __future__ import annotations

from torch.nn.modules.batchnorm import _NormBase

from fds_dist.build.model import ModelBuilder
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.flat import FlatLayout, trainable_parameters
from fds_dist.common.optimizers import BUILT_IN
from fds_dist.config import Config
from fds_dist.distributed.mesh import MeshShape
from fds_dist.schedule.space import HyperparameterSpace
from fds_dist.tangents.optimizers import InnerOptimizer, make_inner_optimizer, needs_layout
from fds_dist.tangents.optimizers.checks import check_optimizer

KEY = "inner.optimizer"


def inner_optimizer(config: Config) -> InnerOptimizer:
    """The optimizer by its name and options.

    Raises:
        UserError: it cannot be made.
    """
    return make_inner_optimizer(config.inner.optimizer_name, config.inner.optimizer_options, KEY)


def check_fit(optimizer: InnerOptimizer, builder: ModelBuilder, space: HyperparameterSpace, shape: MeshShape) -> None:
    """Checks an optimizer against the mesh, and one of a user's own against the protocol.

    Raises:
        UserError: it needs whole parameters, which `mesh.data` cuts, averages weights of a network with running
            statistics, or does not keep to the protocol.
    """
    if shape.data > 1 and needs_layout(optimizer):
        problem = f"{shape.data} ranks would cut parameters, which {optimizer.name} needs whole"
        raise UserError(Fault("mesh.data", problem, f"1 with inner.optimizer {optimizer.name}"))
    if optimizer.name in BUILT_IN:
        if BUILT_IN[optimizer.name].averages:
            _refuse_running_statistics(optimizer, builder)
        return
    layout = FlatLayout.of(trainable_parameters(builder(0)))
    grouped = any(owner.base != owner.name for owner in space.learned)
    check_optimizer(optimizer, layout, split=shape.data > 1, grouped=grouped, key=KEY)


def _refuse_running_statistics(optimizer: InnerOptimizer, builder: ModelBuilder) -> None:
    """They are those of the weights in training; tests at the average of the weights would need its own.

    Raises:
        UserError: the network has some.
    """
    for name, part in builder(0).named_modules():
        if isinstance(part, _NormBase) and part.running_mean is not None:
            problem = (
                f"{optimizer.name} validates an average of the weights, and {name} has running statistics of others"
            )
            expected = "batch-norm with track_running_stats=False, another normalization, or another optimizer"
            raise UserError(Fault(KEY, problem, expected))


def remark_on(optimizer: InnerOptimizer) -> str:
    """What a person should know who learns with it; "" where there is nothing."""
    return BUILT_IN[optimizer.name].remark if optimizer.name in BUILT_IN else ""
