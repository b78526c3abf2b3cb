"""Exports a learned schedule as text: Python that needs only torch, a table, or JSON. This module needs no torch."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from fds_dist.commands.run import RunSource, run_path
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.optimizers import BUILT_IN, torch_arguments
from fds_dist.common.registry import nearest
from fds_dist.common.values import named_numbers
from fds_dist.schedule.groups import base_of, group_of
from fds_dist.schedule.schedule import Schedule
from fds_dist.storage.run_folder import RESULT, RunFolder

HOLDS = {
    RESULT: "the result of the search",
    "average": "the mean of the last values",
    "best": "the values that reached the lowest validation loss",
    "last": "the values after the last outer step",
}
"""The name of a schedule in a run's folder → what it holds."""

TORCH_CLASSES = {name: facts.torch_class for name, facts in BUILT_IN.items() if facts.torch_class}
"""Name in a config → name of the class in `torch.optim`."""

CLIPPING = {"clip_gradient": "clip_grad_value_", "clip_norm": "clip_grad_norm_"}
"""Name in a config → name of the function in `torch.nn.utils`, in the order of the calls."""

_quoted = partial(json.dumps, ensure_ascii=False)
"""Text as a Python literal, in double quotes."""


def export(
    run_dir: RunSource,
    form: str = "snippet",
    *,
    horizon: int | None = None,
    schedule: str = RESULT,
    best: bool = False,
) -> str:
    """The learned schedule of a run as text, to use without fds_dist.

    Args:
        run_dir: the run's folder, or what `optimize` returned.
        form: "snippet" (Python that needs only torch), "csv" (a row per step) or "json".
        horizon: the number of optimizer steps to stretch the schedule to; None: as learned.
        schedule: "result", or one of its candidates: "average", "best" or "last".
        best: short for `schedule="best"`.

    Raises:
        UserError: there is no such run or schedule, the horizon is below 1, or no snippet can be made of the schedule.

    Example:
        >>> table = fds_dist.export("runs/digits", "csv", horizon=4)
        >>> table.splitlines()[0], len(table.splitlines())
        ('step,lr,weight_decay,momentum', 5)
    """
    name, folder = "best" if best else schedule, RunFolder(run_path(run_dir))
    faults = []
    if name not in HOLDS:
        faults.append(Fault("--schedule", f"{name!r} is unknown", f"one of {', '.join(HOLDS)}", nearest(name, HOLDS)))
    file = folder.candidate(name if name in HOLDS else RESULT)
    faults += folder.faults(file=file.name, expected="the folder of a run with a finished outer step")
    if form not in FORMS:
        faults.append(Fault("--format", f"{form!r} is unknown", f"one of {', '.join(FORMS)}", nearest(form, FORMS)))
    if horizon is not None and horizon < 1:
        faults.append(Fault("--horizon", f"{horizon} is out of range", "a whole number of at least 1"))
    if faults:
        raise UserError(faults)
    learned = Schedule.load(file)
    learned = learned if horizon is None else learned.stretch(horizon)
    return FORMS[form](learned, f"{folder.path.resolve().name}/{file.name}, {HOLDS[name]}")


def table(schedule: Schedule, source: str = "", every: int = 1) -> str:
    """Comma-separated values: a line of names, then one line per step, or for one step of `every` so many."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *named_numbers(schedule.at(0))])
    writer.writerows([step, *named_numbers(schedule.at(step)).values()] for step in range(0, schedule.horizon, every))
    return text.getvalue()


def snippet(schedule: Schedule, source: str = "fds-dist") -> str:
    """Python that needs only torch and trains as `schedule.attach` does. Its first line names `source`.

    Raises:
        UserError: the schedule does not name its optimizer, or lacks the patterns of its parameter groups.
    """
    if faults := list(_snippet_faults(schedule)):
        raise UserError(faults)
    grouped = bool(schedule.groups)
    head = "".join(f"# {line}".rstrip() + "\n" for line in _head(schedule, source))
    imports = "import re\n\nimport torch" if grouped else "import torch"
    value_at = LINEAR_VALUE_AT if schedule.shapes else VALUE_AT
    parts = [f"{head}\n{imports}\n\n{_values(schedule)}", value_at, _set_hyperparameters(schedule)]
    parts += [_groups(schedule.optimizer["groups"]), PARAMETER_GROUPS] if grouped else []
    return "\n\n\n".join([*parts, _make_optimizer(schedule)]) + "\n"


FORMS: dict[str, Callable[[Schedule, str], str]] = {
    "snippet": snippet,
    "csv": table,
    "json": lambda schedule, source: schedule.to_json(),
}
"""Name → function from a schedule and its source to text."""


def _snippet_faults(schedule: Schedule) -> Iterator[Fault]:
    name, patterns = schedule.optimizer.get("name"), schedule.optimizer.get("groups")
    if name in BUILT_IN or ":" in str(name):
        if name not in TORCH_CLASSES:
            problem = f"{name} is not in torch.optim, and a snippet needs only torch"
            yield Fault(
                "schedule: optimizer.name",
                problem,
                "fds_dist.make_optimizer, or --format csv or json",
            )
    else:
        yield Fault("schedule: optimizer.name", f"{name!r} is unknown", f"one of {', '.join(TORCH_CLASSES)}")
    if others := sorted({*schedule.shapes.values()} - {"linear"}):
        yield Fault("schedule: shape", f"a snippet cannot say {', '.join(others)}", "--format csv or json")
    if schedule.groups and not (isinstance(patterns, dict) and {*schedule.groups} == {*patterns}):
        expected = f"a pattern for each of {', '.join(schedule.groups)}"
        yield Fault("schedule: optimizer.groups", f"{patterns!r} is not valid", expected)


def _head(schedule: Schedule, source: str) -> Iterator[str]:
    """The head comment: the origin of the schedule, and a training loop that uses the snippet."""
    yield " ".join(f"A hyperparameter schedule learned by fds-dist: {source}.".split())
    yield "It needs only torch. In a training loop:"
    yield ""
    yield "    optimizer = make_optimizer(model)"
    ema, utils = schedule.optimizer.get("ema"), "torch.optim.swa_utils"
    if ema is not None:
        yield f"    average = {utils}.AveragedModel(model, multi_avg_fn={utils}.get_ema_multi_avg_fn({ema!r}))"
    yield "    for step, (x, y) in enumerate(batches):"
    yield "        set_hyperparameters(optimizer, step)"
    yield "        optimizer.zero_grad()"
    if names := schedule.loss_hyperparameters:
        pairs = ", ".join(f"{_quoted(name)}: value_at({_quoted(name)}, step)" for name in names)
        yield f"        extra = {{{pairs}}}  # hyperparameters of the loss: pass them to yours"
    yield from _backward(schedule, ", extra" if names else "")
    for name, function in CLIPPING.items():
        if (bound := schedule.optimizer.get(name)) is not None:
            yield f"        torch.nn.utils.{function}(model.parameters(), {bound!r})  # as when it was learned"
    yield "        optimizer.step()"
    if ema is not None:
        yield "        average.update_parameters(model)  # use average.module: the values were learned for it"


def _backward(schedule: Schedule, extra: str) -> Iterator[str]:
    """The lines of a step's backward pass: in micro-batches and by autocast, if the values were learned so."""
    count, loss = schedule.optimizer.get("accumulate"), f"loss_function(model(x), y{extra})"
    indent = " " * 8
    if count is not None:
        yield f"{indent}batch = len(x)"
        yield f"{indent}for x, y in zip(x.tensor_split({count}), y.tensor_split({count})):  # as when it was learned"
        indent, loss = indent + " " * 4, f"(len(x) / batch) * {loss}"
    if schedule.optimizer.get("precision") == "bf16":
        yield f"{indent}with torch.autocast(x.device.type, torch.bfloat16):  # as when it was learned"
        yield f"{indent}    loss = {loss.replace('model(x)', 'model(x).float()')}"
        yield f"{indent}loss.backward()"
    else:
        yield f"{indent}({loss}).backward()" if count is not None else f"{indent}{loss}.backward()"


def _values(schedule: Schedule) -> str:
    settings = schedule.for_optimizer()
    rows = schedule.values | settings.values | {name: (value,) for name, value in schedule.fixed.items()}
    note = "" if rows.items() >= schedule.values.items() else "; momentum 1e-300 is 0 that keeps SGD's velocity"
    lists = {name: textwrap.fill(str(list(row)), 110, subsequent_indent=" " * 8) for name, row in rows.items()}
    lines = "".join(f"    {_quoted(name)}: {text},\n" for name, text in lists.items())
    return f"""\
HORIZON = {schedule.horizon}  # optimizer steps; another number stretches the schedule
SCHEDULE = {{  # each row is spread evenly over the horizon{note}
{lines}}}{_knots(schedule)}"""


def _knots(schedule: Schedule) -> str:
    names = ", ".join(map(_quoted, schedule.shapes))
    return f"\nLINEAR = [{names}]  # rows of knots, from the first step to the last" if names else ""


VALUE_AT = '''\
def value_at(name, step):
    """The value of a hyperparameter at a step, counted from 0; past the horizon, the last value."""
    row = SCHEDULE[name]
    return row[len(row) * min(step, HORIZON - 1) // HORIZON]'''

LINEAR_VALUE_AT = '''\
def value_at(name, step):
    """The value of a hyperparameter at a step, counted from 0; past the horizon, the last value."""
    row, step = SCHEDULE[name], min(step, HORIZON - 1)
    if name not in LINEAR:
        return row[len(row) * step // HORIZON]
    length = max(1, HORIZON - 1)
    left, rest = divmod(step * (len(row) - 1), length)
    return between(row[left], row[left + 1], rest / length, (length - rest) / length) if rest else row[left]


def between(left, right, weight, other):
    """A straight line's value, of a number or of each number of a list."""
    if isinstance(left, (list, tuple)):
        return [between(*pair, weight, other) for pair in zip(left, right)]
    return min(max(other * left + weight * right, min(left, right)), max(left, right))'''


def _set_hyperparameters(schedule: Schedule) -> str:
    names = schedule.for_optimizer().at(0)
    bases = dict.fromkeys(map(base_of, names))
    grouped = {base_of(name) for name in names if group_of(name)}

    def value(base: str) -> str:
        name = f'"{base}." + group["name"]' if base in grouped else f'"{base}"'
        return f"value_at({name}, step)"

    betas = [value(base) if base in bases else f'group["betas"][{i}]' for i, base in enumerate(("beta1", "beta2"))]
    settings = {base: value(base) for base in bases if base not in ("beta1", "beta2")}
    settings |= {"betas": f"({', '.join(betas)})"} if len(settings) < len(bases) else {}
    lines = "\n".join(f'        group["{key}"] = {text}' for key, text in settings.items())
    return f'''\
def set_hyperparameters(optimizer, step):
    """Sets the values for an optimizer step, counted from 0. Call it before `optimizer.step()`."""
    for group in optimizer.param_groups:
{lines}'''


def _groups(patterns: Mapping[str, str]) -> str:
    rows = "".join(f"    {_quoted(name)}: {_quoted(pattern)},\n" for name, pattern in patterns.items())
    return f"GROUPS = {{  # the first pattern that matches a parameter's name decides\n{rows}}}"


PARAMETER_GROUPS = '''\
def parameter_groups(model):
    """The parameters by group. `model` is the network itself, before a wrapper such as DistributedDataParallel."""
    groups = {name: {"name": name, "params": []} for name in GROUPS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), None)
            if group is None:
                raise ValueError(f"no pattern matches {name}")
            groups[group]["params"].append(parameter)
    return list(groups.values())'''


def _make_optimizer(schedule: Schedule) -> str:
    class_name, arguments = TORCH_CLASSES[schedule.optimizer["name"]], torch_arguments(schedule.optimizer)
    parameters = "parameter_groups(model)" if schedule.groups else "model.parameters()"
    if not any(base_of(name) == "momentum" for name in schedule.at(0)):
        arguments.pop("nesterov", None)  # without momentum it changes nothing
        arguments.pop("momentum", None)
    options = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return f'''\
def make_optimizer(model):
    """The optimizer that the values were learned for. `set_hyperparameters` sets all of them."""
    return torch.optim.{class_name}({parameters}, lr=0.0{options})'''
