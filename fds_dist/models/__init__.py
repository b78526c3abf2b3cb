"""Networks by name: this package's, torchvision's, or a ``package.module:function`` of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from torch import nn

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.randomness import seeded
from fds_dist.common.registry import call_faults, call_user_function, is_count, load_object, nearest, with_offers
from fds_dist.models.lenet import lenet
from fds_dist.models.mlp import mlp
from fds_dist.models.parts import INITIALIZATIONS, checkpoint_blocks, initialize
from fds_dist.models.torchvision_models import torchvision_builder, torchvision_names
from fds_dist.models.transformer import transformer
from fds_dist.models.wide_resnet import wide_resnet

Builder = Callable[..., nn.Module]
MODELS: dict[str, Builder] = {"mlp": mlp, "lenet": lenet, "transformer": transformer}  # and wrn-D-K, and torchvision's


def build_model(
    name: str,
    options: Mapping[str, object],
    *,
    input_shape: Sequence[int] | None,
    classes: int | None,
    seed: int,
    key: str = "model",
) -> nn.Module:
    """The network called ``name``, its weights drawn from ``seed`` alone; torch's global generators stay as they were.

    ``input_shape`` (of one sample), ``classes`` and ``seed`` are passed where the function has parameters of those
    names, unless ``options`` has them; None means unknown, and a function that needs it makes a fault. Networks of this
    package and of torchvision take the option ``init`` too: a name in `INITIALIZATIONS`.

    Raises `UserError` for an unknown name, for unknown, missing or wrong options, for an exception in a user's own
    function, and where that returns something else than a module.
    """
    is_own = ":" in name
    builder = cast(Builder, load_object(name, f"{key}.name")) if is_own else _find(name, f"{key}.name")
    remaining = dict(options)
    init = "default" if is_own else remaining.pop("init", "default")
    arguments = with_offers(builder, remaining, {"input_shape": input_shape, "classes": classes, "seed": seed})
    faults = call_faults(builder, arguments, key)
    if not is_own:
        faults += _value_faults({"init": init, **arguments}, key)
    if faults:
        raise UserError(faults)
    with seeded(seed):
        model = call_user_function(builder, arguments, f"{key}.name") if is_own else builder(**arguments)
        if not isinstance(model, nn.Module):
            raise UserError(Fault(f"{key}.name", f"{name} returned a {type(model).__name__}", "a torch.nn.Module"))
        initialize(model, str(init))
    return model


def _value_faults(arguments: Mapping[str, object], key: str) -> list[Fault]:
    """Faults in the values of what all networks of this package take."""
    faults = []
    init, shape, classes = arguments["init"], arguments.get("input_shape", ()), arguments.get("classes", 1)
    if init not in list(INITIALIZATIONS):
        expected, near = f"one of {', '.join(INITIALIZATIONS)}", nearest(str(init), INITIALIZATIONS)
        faults.append(Fault(f"{key}.init", f"{init!r} is unknown", expected, near))
    if not (isinstance(shape, (list, tuple)) and all(map(is_count, shape))):
        faults.append(Fault(f"{key}.input_shape", f"{shape!r} is not valid", "a list of whole numbers of at least 1"))
    if not is_count(classes):
        faults.append(Fault(f"{key}.classes", f"{classes!r} is not valid", "a whole number of at least 1"))
    return faults


def _find(name: str, key: str) -> Builder:
    if name in MODELS:
        return MODELS[name]
    if wide := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        depth, width = map(int, wide.groups())
        return _wide_resnet(depth, width)
    names = torchvision_names()
    if name in names:
        return torchvision_builder(name)
    expected = (
        f"{', '.join(MODELS)}, wrn-DEPTH-WIDTH, a classification network of torchvision or package.module:function"
    )
    raise UserError(
        Fault(key, f"{name!r} is unknown", expected, nearest(name, [*MODELS, "wrn-16-1", "wrn-28-10", *names]))
    )


def _wide_resnet(depth: int, width: int) -> Builder:
    # Not functools.partial: that would let the options override what the name says.
    def named(
        input_shape: Sequence[int], classes: int, *, dropout: float = 0.0, checkpointing: bool = False
    ) -> nn.Module:
        model = wide_resnet(input_shape, classes, depth=depth, width=width, dropout=dropout)
        return checkpoint_blocks(model) if checkpointing else model

    return named
