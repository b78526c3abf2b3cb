"""Networks by name: those of this package, of torchvision, or a user's ``package.module:function``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.options import kind_faults, option_faults
from fds_dist.common.randomness import seeded
from fds_dist.common.registry import call_faults, call_user_function, load_object, nearest, with_offers
from fds_dist.models.handed_in import KEEP, HandedIn, checked_start
from fds_dist.models.lenet import lenet
from fds_dist.models.mlp import mlp
from fds_dist.models.parts import Initialization, initialize
from fds_dist.models.torchvision_models import torchvision_builder, torchvision_names
from fds_dist.models.transformer import transformer
from fds_dist.models.wide_resnet import wide_resnet_builder

Builder = Callable[..., nn.Module]
MODELS: dict[str, Builder] = {"mlp": mlp, "lenet": lenet, "transformer": transformer}  # and wrn-D-K, and torchvision's


def build_model(
    name: str,
    options: Mapping[str, object],
    *,
    input_shape: Sequence[int] | None,
    classes: int | None,
    seed: int,
) -> nn.Module:
    """The network called ``name``, with weights drawn from ``seed``; torch's global generators do not change.

    ``input_shape`` (of one sample), ``classes`` and ``seed`` are passed if the function has parameters of those names,
    unless ``options`` has them. None means unknown, and is a fault if the function needs it. Networks of this package
    and of torchvision also take the option ``init``: a name in `INITIALIZATIONS`.

    Raises `UserError` for an unknown name, for unknown, missing or wrong options, for an exception in a user's
    function, and if that function does not return a module.
    """
    offers = {"input_shape": input_shape, "classes": classes, "seed": seed}
    with seeded(seed):
        if ":" in name:
            return _users_model(name, options, offers)
        builder = _builder(name)
        of_builder = {key: value for key, value in options.items() if key != "init"}
        arguments, init = with_offers(builder, of_builder, offers), options.get("init", "default")
        if faults := kind_faults(Initialization, init, "model.init") + option_faults(builder, arguments, "model"):
            raise UserError(faults)
        model = builder(**arguments)
        initialize(model, str(init))
        return model


def _users_model(name: str, options: Mapping[str, object], offers: Mapping[str, object]) -> nn.Module:
    """The module that a user's function returns. Only the names of its options are checked."""
    function = load_object(name, "model.name")
    arguments = with_offers(function, options, offers)
    if faults := call_faults(function, arguments, "model"):
        raise UserError(faults)
    model = call_user_function(function, arguments, "model.name")
    if not isinstance(model, nn.Module):
        problem = f"{name} returned a {type(model).__name__}"
        raise UserError(Fault("model.name", problem, "a torch.nn.Module"))
    return model


def network_of(
    name: str,
    options: Mapping[str, object],
    input_shape: Sequence[int] | None,
    classes: int | None,
    inputs: Callable[[], Any],
) -> Callable[[int], nn.Module]:
    """seed → the network of `build_model`; of a user's own function, copies as `HandedIn` makes them.

    ``init`` among the ``options`` then says which weights they start from, unless the function has a parameter of that
    name. ``inputs`` gives those of a batch.

    Raises `UserError` for a function that cannot be loaded, and for an ``init`` that nothing takes.
    """

    def build(seed: int) -> nn.Module:
        return build_model(name, arguments, input_shape=input_shape, classes=classes, seed=seed)

    arguments, init = options, options.get("init", KEEP)
    if ":" not in name:
        return build
    if with_offers(load_object(name, "model.name"), {}, {"init": init}):
        return HandedIn(build, KEEP, inputs)
    arguments = {key: value for key, value in options.items() if key != "init"}
    return HandedIn(build, checked_start(init), inputs)


def _builder(name: str) -> Builder:
    """The function that builds the network of this package or of torchvision called ``name``."""
    if name in MODELS:
        return MODELS[name]
    if wide := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        depth, width = map(int, wide.groups())
        return wide_resnet_builder(depth, width)
    names = torchvision_names()
    if name in names:
        return torchvision_builder(name)
    expected = (
        f"{', '.join(MODELS)}, wrn-DEPTH-WIDTH, a classification network of torchvision or package.module:function"
    )
    nearest_name = nearest(name, [*MODELS, "wrn-16-1", "wrn-28-10", *names])
    raise UserError(Fault("model.name", f"{name!r} is unknown", expected, nearest_name))
