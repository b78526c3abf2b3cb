"""torchvision's classification networks by name, fitted to the task's classes, channels and image size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import Count, Switch
from fds_dist.common.options import checked
from fds_dist.common.vision import import_torchvision
from fds_dist.models.parts import checkpoint_blocks, image
from fds_dist.models.size import size_checked

SMALL_IMAGE = 64  # pixels; a ResNet's stem would discard most of a smaller image
PATCHES = 7  # the fewest patches along a side of a vision transformer's image: 224 / 32, as in torchvision's coarsest

FIXED = {"aux_logits": False, "init_weights": True}
"""Options that are set here: auxiliary heads would return tuples, and without `init_weights` two networks warn."""

FITTED = ("num_classes", "image_size", "input_size")
"""Options that follow from the task."""


def torchvision_names() -> list[str]:
    """The names of all classification networks."""
    models = import_torchvision().models
    return models.list_models(module=models)


def torchvision_builder(name: str) -> Callable[..., nn.Module]:
    """The function that builds the network ``name``: (input_shape, classes, **options) -> N×C×H×W -> N×classes.

    Its signature lists the options of torchvision's class that a user can set. Weights are always fresh.

    - If the images do not have three channels, the first convolution is replaced.
    - If a side is under `SMALL_IMAGE`, ResNets start with a 3×3 convolution of stride 1 and no pooling (He et al.,
      2016, section 4.2).
    - A vision transformer's ``patch_size`` is the largest divisor of the image's side that is at most the usual one and
      leaves `PATCHES` patches along the side. It and all other sizes are options.
    - With ``checkpointing`` the blocks' activations are computed again in the backward pass.
    - Hard sigmoids, which PyTorch cannot differentiate twice, are written as elementary operations.

    The function raises `UserError` for values that torchvision refuses, and for images that do not fit.
    """
    make, parameters = _entry(name)

    def build(input_shape: Sequence[int], classes: int, checkpointing: bool = False, **options: object) -> nn.Module:
        channels, height, width = input_shape
        fitted = {"num_classes": classes, "image_size": (height, width), "input_size": (height, width), **FIXED}
        try:
            arguments = {key: value for key, value in fitted.items() if key in parameters} | options
            if options:  # sizes among them, perhaps: tried without memory and without drawing numbers
                with size_checked(name), torch.device("meta"):
                    make(**arguments)
            model = make(**arguments)
        except UserError:
            raise
        except Exception as error:  # a value of the wrong kind can raise anything
            problem = f"torchvision cannot build {name} with these options: {type(error).__name__}: {error}"
            raise UserError(Fault("model", problem, "other options, or another network")) from error
        _fit(model, channels, min(height, width))
        _check(model, name, (channels, height, width), classes)
        return checkpoint_blocks(model) if checkpointing else model

    build.__signature__ = _signature(parameters)  # type: ignore[attr-defined]
    return checked("model")(build)


def _signature(parameters: Mapping[str, inspect.Parameter]) -> inspect.Signature:
    """The signature of a builder: the task's offers, and those of torchvision's parameters that a user can set."""
    keyword = partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    open_parameters = [
        keyword(name, default=None)
        for name, parameter in parameters.items()
        if _is_open(parameter) and name not in FITTED and name not in FIXED
    ]
    return inspect.Signature(
        [
            keyword("input_shape", annotation=Annotated[Sequence[int], image(smallest_side=1)]),
            keyword("classes", annotation=Count),
            *open_parameters,
            keyword("checkpointing", default=False, annotation=Switch),
        ]
    )


def _entry(name: str) -> tuple[Callable[..., Any], Mapping[str, inspect.Parameter]]:
    """A function that makes the network ``name``, and the parameters of the network's class."""
    models = import_torchvision().models
    make = models.get_model_builder(name)
    if (network := inspect.signature(make).return_annotation) is models.VisionTransformer:
        make = network = partial(_vision_transformer, make)
    return make, inspect.signature(network).parameters


def _is_open(parameter: inspect.Parameter) -> bool:
    """Whether a user can set the parameter: it is not a function or class, and the network's name does not set it."""
    return not callable(parameter.default) or (parameter.default is parameter.empty and parameter.name == "dropout")


def _vision_transformer(
    make: Callable[..., Any],
    *,
    image_size: tuple[int, int],
    num_classes: int,
    patch_size: int | None = None,
    num_layers: int | None = None,
    num_heads: int | None = None,
    hidden_dim: int | None = None,
    mlp_dim: int | None = None,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    representation_size: int | None = None,
) -> nn.Module:
    """Builds torchvision's class with the usual sizes of this network: torchvision's builders fix the patch size."""
    height, width = image_size
    if height != width:
        raise UserError(Fault("model.input_shape", f"{height}×{width} does not fit this model", "square images"))
    with torch.device("meta"):
        usual = make()
    fitting = (p for p in range(1, usual.patch_size + 1) if height % p == 0 and height // p >= PATCHES)
    return type(usual)(
        height,
        patch_size or max(fitting, default=1),
        num_layers or len(usual.encoder.layers),
        num_heads or usual.encoder.layers[0].num_heads,
        hidden_dim or usual.hidden_dim,
        mlp_dim or usual.mlp_dim,
        dropout,
        attention_dropout,
        num_classes,
        representation_size,
    )


class _HardSigmoid(nn.Module):
    """``nn.Hardsigmoid``, written with operators that PyTorch can differentiate twice."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


def _fit(model: nn.Module, channels: int, side: int) -> None:
    """Changes ``model`` in place to fit images of ``channels`` and ``side`` pixels, and to have second derivatives."""
    small_resnet = side < SMALL_IMAGE and isinstance(model, import_torchvision().models.ResNet)
    first = next((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    if channels != 3 or small_resnet:
        _replace(model, first[0], _convolution_like(first[1], channels, small=small_resnet))
    if small_resnet:
        model.maxpool = nn.Identity()
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Hardsigmoid):
            _replace(model, path, _HardSigmoid())


def _convolution_like(old: nn.Conv2d, channels: int, small: bool) -> nn.Conv2d:
    """A first convolution for ``channels`` channels; if ``small``, with 3×3 pixels and stride 1.

    Its weights are normal, with a deviation that keeps the variance of the outputs.
    """
    new = nn.Conv2d(
        channels,
        old.out_channels,
        3 if small else old.kernel_size,  # type: ignore[arg-type]
        1 if small else old.stride,  # type: ignore[arg-type]
        1 if small else old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        fan_in = old.weight[0].numel() / new.weight[0].numel()
        new.weight.normal_().mul_(old.weight.std() * fan_in**0.5)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    return new


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _check(model: nn.Module, name: str, shape: tuple[int, int, int], classes: int) -> None:
    """Raises `UserError` if the network does not take images of ``shape``; on the meta device, without computing."""
    tensors = {key: tensor.to("meta") for key, tensor in chain(model.named_parameters(), model.named_buffers())}
    model.eval()
    try:
        output = torch.func.functional_call(model, tensors, (torch.zeros(1, *shape, device="meta"),))
    except Exception as error:
        size = "×".join(map(str, shape))
        problem = f"{size} does not fit {name}: {error}"
        raise UserError(Fault("model.input_shape", problem, "larger images, or another network")) from error
    finally:
        model.train()
    assert output.shape == (1, classes), (name, output.shape)
