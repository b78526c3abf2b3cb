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


def build_task(name: str, options: Mapping[str, object], *, seed: int, key: str = "task") -> Task:
    """The task called ``name``, made with ``options``.

    ``seed`` is passed where the function has a parameter of that name, unless ``options`` has it.

    Raises `UserError` for an unknown name, for unknown or missing options, for an exception in a user's own function,
    and where that returns something else than a `Task`.
    """
    is_own = ":" in name
    function = cast(Callable[..., Task], load_object(name, f"{key}.name")) if is_own else _find(name, f"{key}.name")
    arguments = with_offers(function, options, {"seed": seed})
    if faults := call_faults(function, arguments, key):
        raise UserError(faults)
    task = call_user_function(function, arguments, f"{key}.name") if is_own else function(**arguments)
    if faults := task_faults(task, key):
        raise UserError(faults)
    return cast(Task, task)


def _find(name: str, key: str) -> Callable[..., Task]:
    if name not in TASKS:
        expected = f"{', '.join(TASKS)} or package.module:function"
        raise UserError(Fault(key, f"{name!r} is unknown", expected, nearest(name, TASKS)))
    return TASKS[name]
