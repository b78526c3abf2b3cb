"""Functions by name: the nearest of some names, `package.module:function`, its arguments and its call."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from fds_dist.common.faults import Fault, UserError, user_line

FORM = "package.module:function"


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of `names` that `name` was most likely meant to be, ignoring case; "" when none is close."""
    folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return folded[close[0]] if close else ""


def call_faults(function: Callable[..., object], options: Mapping[str, object], key: str) -> list[Fault]:
    """Would `function(**options)` work, as far as names go?

    Args:
        function: anything callable; one without a readable signature passes.
        options: the user's keyword arguments.
        key: dotted key under which the user wrote them.

    Returns:
        A fault for each name that the function does not take and for each required one that is absent.
    """
    signature = _signature(function)
    if signature is None:
        return []
    parameters = signature.parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    faults = []
    for name in options:
        if name not in named and not takes_any:
            nearest_name = nearest(name, named)
            expected = "" if nearest_name else ("one of " + ", ".join(named) if named else "no options here")
            suggestion = f"{key}.{nearest_name}" if nearest_name else ""
            faults.append(Fault(f"{key}.{name}", "unknown key", expected, suggestion))
    for p in parameters:
        if p.default is not p.empty:
            continue
        if p.kind is p.POSITIONAL_ONLY:
            faults.append(Fault(key, f"the function takes {p.name!r} by position only", "parameters with names"))
        elif p.name in named and p.name not in options:
            faults.append(Fault(f"{key}.{p.name}", "is missing", "a value"))
    return faults


def is_positive_int(value: object) -> bool:
    """Whether `value` is a whole number of at least 1 (`True` is not one)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def parameters_of(function: Callable[..., object]) -> frozenset[str]:
    """The names of the function's parameters; none for the few built-in functions that do not tell."""
    signature = _signature(function)
    return frozenset(() if signature is None else signature.parameters)


def with_offers(
    function: Callable[..., object], options: Mapping[str, object], offers: Mapping[str, object]
) -> dict[str, object]:
    """`options`, and those `offers` that `function` has a parameter for and `options` leaves open; None: no offer."""
    signature = _signature(function)
    names = () if signature is None else signature.parameters
    taken = {name: offers[name] for name in names if offers.get(name) is not None and name not in options}
    return {**taken, **options}


def call_user_function(function: Callable[..., object], arguments: Mapping[str, object], key: str) -> object:
    """`function(**arguments)`; an exception inside becomes a `UserError` that tells what was raised, and where."""
    try:
        return function(**arguments)
    except UserError:
        raise
    except Exception as error:  # with its whole message, which may be the user's own
        name = f"{function.__module__}:{getattr(function, '__qualname__', type(function).__qualname__)}"
        raise UserError(Fault(key, f"{name} raised {type(error).__name__}: {error}{user_line(error)}")) from error


def _signature(function: Callable[..., object]) -> inspect.Signature | None:
    """The signature; None for the few built-in functions that have none."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def load_object(path: str, key: str) -> Callable[..., Any]:
    """The function or class that `package.module:function` names, in an installed module or one of the current folder.

    Raises:
        UserError: naming `key`: a path of another form, no such module or attribute, an object that cannot be called,
            or a module that fails while it is imported (with the file and the line).
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        meant = f"{module_name.removesuffix('.py').strip('./').replace('/', '.')}:{attribute}"
        well_formed = all(part.isidentifier() for part in meant.replace(":", ".").split("."))
        raise UserError(Fault(key, f"{path!r} is not of the right form", FORM, meant if well_formed else ""))
    module = _import(module_name, path, key)
    if not hasattr(module, attribute):
        nearest_name = nearest(attribute, (name for name in vars(module) if not name.startswith("_")))
        suggestion = f"{module_name}:{nearest_name}" if nearest_name else ""
        raise UserError(Fault(key, f"module {module_name} has no {attribute!r}", FORM, suggestion))
    function = getattr(module, attribute)
    if not callable(function):
        raise UserError(Fault(key, f"{path} is a {type(function).__name__}", "a function"))
    return function


def _import(name: str, path: str, key: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # where `python -m` has it, so that both entry points find the same module
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever the user's module does while it is imported
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            module = nearest(name, (module.name for module in pkgutil.iter_modules([folder])))
            suggestion = path.replace(name, module, 1) if module and module != name else ""
            fault = Fault(key, f"there is no module {error.name} in the current folder or installed", FORM, suggestion)
        else:
            problem = f"importing {name} fails{user_line(error)}: {type(error).__name__}: {error}"
            fault = Fault(key, problem, "a module that can be imported")
        raise UserError(fault) from error
