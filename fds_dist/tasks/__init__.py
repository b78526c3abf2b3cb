"""Tasks by name: those of this package, or a ``package.module:function`` of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from fds_dist.common.faults import Fault, UserError
from fds_dist.common.registry import call_faults, call_user_function, load_object, nearest, with_offers
from fds_dist.tasks.base import Task, task_faults
from fds_dist.tasks.digits import digits
from fds_dist.tasks.image_folder import imagefolder
from fds_dist.tasks.images import IMAGE_SETS, image_task
from fds_dist.tasks.synthetic import synthetic
from fds_dist.tasks.text import text

TASKS: dict[str, Callable[..., Task]] = {
    "digits": digits,
    **{images.name: image_task(images) for images in IMAGE_SETS},
    "imagefolder": imagefolder,
    "synthetic": synthetic,
    "text": text,
}


def build_task(name: str, options: Mapping[str, object], *, seed: int) -> Task:
    """The task called ``name``, made with ``options``.

    ``seed`` is passed where the function has a parameter of that name, unless ``options`` has it.

    Raises `UserError` for an unknown name, for unknown or missing options, for an exception in a user's own function,
    and where that returns something else than a `Task`.
    """
    if ":" in name:
        return _users_task(load_object(name, "task.name"), options, seed)
    if name not in TASKS:
        expected = f"{', '.join(TASKS)} or package.module:function"
        raise UserError(Fault("task.name", f"{name!r} is unknown", expected, nearest(name, TASKS)))
    return TASKS[name](**with_offers(TASKS[name], options, {"seed": seed}))


def _users_task(function: Callable[..., object], options: Mapping[str, object], seed: int) -> Task:
    """What a user's own function returns; only the names of its options are checked."""
    arguments = with_offers(function, options, {"seed": seed})
    if faults := call_faults(function, arguments, "task"):
        raise UserError(faults)
    task = call_user_function(function, arguments, "task.name")
    if faults := task_faults(task):
        raise UserError(faults)
    return cast(Task, task)
