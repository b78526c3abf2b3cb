"""`fds-dist config`: explains a key of the config, or prints a config with all its defaults."""

from __future__ import annotations

import inspect
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

from fds_dist.commands.retrain.settings import RetrainSettings
from fds_dist.common.domain import interval, natural_domain
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.optimizers import BUILT_IN, HYPERPARAMETERS, usual_start
from fds_dist.common.paths import expand_path
from fds_dist.common.registry import nearest
from fds_dist.config import Config, dump_config, load_config
from fds_dist.config.explain import suggested_key
from fds_dist.config.keys import DEPENDS, Key, all_keys, as_yaml, general, keys_of, words_for
from fds_dist.config.sources import config_file

WIDTH = 100
"""Columns of an explanation."""

OFFERED = ("input_shape", "classes", "seed")
"""What the functions of tasks and models are given where the config leaves it out."""

Functions = Mapping[str, Callable[..., object]]


def explain(word: str | None, overrides: Sequence[str] = ()) -> str:
    """What `fds-dist config` prints.

    Args:
        word: a key, of which the last part is enough; or a config, whose resolved form is printed; None: the sections.
        overrides: `key=value`, for a config.

    Raises:
        UserError: it is neither a key nor a config, or a config at fault.
    """
    if word is None:
        return _sections()
    explanation = "" if overrides else "\n\n".join(_explanations(word))
    if explanation:
        return f"{explanation}\n"
    if config_file(expand_path(word)).is_file():
        return dump_config(load_config(word, overrides), secrets=False)
    expected = "a key (`fds-dist config` lists them), a YAML file, the folder of a run or a shipped config"
    raise UserError(Fault(word, "neither a key nor a config", expected, suggested_key(tuple(word.split(".")))))


def _sections() -> str:
    """All sections and single keys of a config, with their meaning."""
    lines = ["A config has these keys; `fds-dist config KEY` says more about any of them and those below.", ""]
    for key in keys_of(Config):
        lines += _hanging(f"  {key.name:<18} ", key.sentence)
    return "\n".join(lines) + "\n"


def _explanations(word: str) -> Iterator[str]:
    """One text per key that `word` may mean: the key itself, else all keys that end with it."""
    keys = list(all_keys(keys_of(Config)))
    section, _, option = word.partition(".")
    named = [key for key in keys if key.name in (word, general(tuple(word.split("."))))]
    named = named or [key for key in keys if key.name.endswith(f".{word}") and "per_group.NAME" not in key.name]
    named = named or [key for key in keys if key.name == word.rpartition(".")[0] and _has_free_names(key)]
    if word in HYPERPARAMETERS or (section == "hyperparameters" and option and "." not in option):
        yield _hyperparameter(option or word)
    for key in named:
        yield "\n".join([*_described(key, word), *_of_functions(key.name)])
    for key in keys_of(RetrainSettings):
        if key.name == word:
            yield "\n".join([f"{word}, of fds-dist retrain", *_taken(key), "", f"    retrain RUN_DIR {word}=VALUE"])
    if not named and section in ("task", "model") and option:
        yield from _option(section, option)


def _has_free_names(key: Key) -> bool:
    """Whether it holds a mapping whose keys are any names, with values that are no sections."""
    return key.takes.startswith("a mapping") and not key.below


def _described(key: Key, word: str) -> list[str]:
    """The key, its meaning, what it takes, its default, how it is written, and the keys below."""
    name = word if "." in word and general(tuple(word.split("."))) == key.name else key.name
    *sections, last = name.split(".")
    value = key.default if key.default not in ("", DEPENDS, "null") else "VALUE"
    nested = f"{last}: {value}"
    for section in reversed(sections):
        nested = f"{section}: {{{nested}}}"
    lines = [name, *_taken(key)]
    if not _is_section(key):
        lines += [
            "",
            f"    in a config          {nested}",
            f"    on the command line  {shlex.quote(f'{name}={value}')}",
        ]
        lines += [""] if key.below else []
    below = [each for each in key.below if each.name.count(".") <= key.name.count(".") + 2]
    width = max((len(each.name) for each in below), default=0)
    for each in below:
        lines += _hanging(f"    {each.name:<{width}}  ", f"{each.sentence} {_short(each)}")
    return lines


def _is_section(key: Key) -> bool:
    """Whether it holds a section and nothing else."""
    return key.takes == "a mapping" and key.below != ()


def _taken(key: Key) -> list[str]:
    """The meaning of a key, what it takes, and its default."""
    lines = [*_hanging("    ", key.meaning), ""]
    if _is_section(key):
        return lines
    default = {"": "none: the key is required", DEPENDS: "depends on other keys, as said above"}
    lines += _hanging("    takes    ", key.takes)
    return [*lines, *_hanging("    default  ", default.get(key.default, key.default))]


def _short(key: Key) -> str:
    """What the key takes and its default, in brackets."""
    default = f"; default {key.default}" if key.default not in ("", DEPENDS) else ""
    return f"({key.takes}{default})" if key.takes != "a mapping" else ""


def _hyperparameter(name: str) -> str:
    """What is known of the hyperparameter of this name: the optimizers that have it, its bounds and usual starts."""
    starts = {optimizer: usual_start(optimizer, name) for optimizer in BUILT_IN}
    having = [
        f"{optimizer} (where a search begins at {as_yaml(at)})" for optimizer, at in starts.items() if at is not None
    ]
    of = (
        f"Of {', '.join(having)}."
        if having
        else "Of no built-in optimizer: it belongs to the loss of a task, and init is needed."
    )
    lines = [
        f"hyperparameters.{name}",
        *_hanging("    ", f"{of} Its natural domain: {interval(*natural_domain(name))}."),
    ]
    lines += ["    A number fixes it; a mapping with these keys learns it:"]
    for key in all_keys(keys_of(Config)):
        if key.name.startswith("hyperparameters.NAME.") and key.name.count(".") == 2:
            lines += _hanging(f"    {key.name.replace('NAME', name)}  ", f"{key.sentence} {_short(key)}")
    return "\n".join(lines)


def _of_functions(section: str) -> list[str]:
    """For the sections `task` and `model`: what is built in, with its options."""
    if section not in ("task", "model"):
        return []
    lines = ["", "    built in, with their options:"]
    for name, function in _functions(section).items():
        lines += _hanging(f"    {name:<16} ", ", ".join(_options(function)) or "none")
    return [
        *lines,
        f"    `fds-dist config {section}.NAME` says more about one of them, and {section}.OPTION about an option.",
    ]


def _option(section: str, word: str) -> Iterator[str]:
    """The task or model of this name with its options; or the option of this name, for each one that takes it."""
    functions = _functions(section)
    if word in functions:
        meaning = " ".join((inspect.getdoc(functions[word]) or "").split("\n\n")[0].split())
        lines = [f"{section}: {{name: {word}}}", *_hanging("    ", meaning)]
        for name, parameter in _options(functions[word]).items():
            lines += _hanging(f"    {section}.{name:<16} ", _parameter(parameter))
        yield "\n".join(lines)
        return
    taking = {name: _options(function)[word] for name, function in functions.items() if word in _options(function)}
    if taking:
        lines = [f"{section}.{word}"]
        for name, parameter in taking.items():
            lines += _hanging(f"    {name:<16} ", _parameter(parameter))
        yield "\n".join(lines)
        return
    options = [option for function in functions.values() for option in _options(function)]
    expected = f"a built-in name, or an option of one; a {section} of one's own has the options of its function"
    similar = nearest(word, [*functions, *options])
    raise UserError(Fault(f"{section}.{word}", "unknown", expected, f"{section}.{similar}" if similar else ""))


def _functions(section: str) -> Functions:
    """The built-in tasks or models by name."""
    if section == "task":
        from fds_dist.tasks import TASKS

        return TASKS
    from fds_dist.models import MODELS
    from fds_dist.models.wide_resnet import wide_resnet_builder

    return {**MODELS, "wrn-16-1": wide_resnet_builder(16, 1)}


def _options(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The parameters that a config sets."""
    return {name: each for name, each in inspect.signature(function).parameters.items() if name not in OFFERED}


def _parameter(parameter: inspect.Parameter) -> str:
    """What an option takes, and its default."""
    kind = parameter.annotation
    takes = words_for(kind) if hasattr(kind, "__metadata__") else getattr(kind, "__name__", str(kind))
    default = parameter.default
    if default is parameter.empty:
        return f"{takes}; required"
    return f"{takes}; default {as_yaml(list(default) if isinstance(default, tuple) else default)}"


def _hanging(start: str, text: str) -> list[str]:
    """The text after `start`, in lines of `WIDTH` that are indented as far."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
    ) or [start.rstrip()]
