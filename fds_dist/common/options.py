"""The options of tasks and models, checked by the signatures of the functions that take them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar, get_origin

from pydantic import TypeAdapter, ValidationError, WrapValidator

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import fault_of
from fds_dist.common.registry import call_faults

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def checked(key: str, **kinds: WrapValidator) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Makes a function check its arguments before it runs: their names, and the values of those with a kind.

    A kind is an annotation of `fds_dist.common.kinds`, or any other `Annotated` type that pydantic can read; arguments
    with other annotations are left to the function. The function then raises `UserError` with all faults at once.

    Args:
        key: the dotted key under which the user writes the options: `task`.
        kinds: for some parameters a kind that no annotation can name, as it depends on values.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        signature = inspect.signature(function, eval_str=True)
        parameters = [
            parameter.replace(annotation=Annotated[parameter.annotation, kinds[name]]) if name in kinds else parameter
            for name, parameter in signature.parameters.items()
        ]

        @wraps(function)
        def call(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
            if faults := option_faults(call, {**signature.bind_partial(*args).arguments, **options}, key):
                raise UserError(faults)
            return function(*args, **options)

        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return call

    return decorate


def option_faults(function: Callable[..., object], options: Mapping[str, object], key: str) -> list[Fault]:
    """What is wrong with `options` as keyword arguments of a `checked` function: unknown, missing and wrong ones."""
    return [*call_faults(function, options, key), *value_faults(function, options, key)]


def value_faults(function: Callable[..., object], options: Mapping[str, object], key: str) -> list[Fault]:
    """Those of `options` whose values are not of the kinds that the signature of a `checked` function names."""
    parameters = inspect.signature(function).parameters
    kinds = {name: parameters[name].annotation for name in options if name in parameters}
    return [
        fault
        for name, kind in kinds.items()
        if get_origin(kind) is Annotated
        for fault in kind_faults(kind, options[name], f"{key}.{name}")
    ]


def kind_faults(kind: Any, value: object, key: str) -> list[Fault]:
    """What is wrong with one value of a kind, the entries of a list included."""
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        return [fault_of(key + "".join(f"[{part}]" for part in detail["loc"]), detail) for detail in details]
    return []
