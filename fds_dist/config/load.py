"""Reading configs: a file or a mapping, overrides on top, and every fault at once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import ValidationError

from fds_dist.common import limits
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.kinds import show
from fds_dist.common.paths import expand_path
from fds_dist.common.secrets import hide_secrets
from fds_dist.config.explain import Finding, dotted, findings
from fds_dist.config.explain import Path as KeyPath
from fds_dist.config.references import as_written, fill_in, missing_faults, references_in
from fds_dist.config.schema import Config
from fds_dist.config.sections import Section
from fds_dist.config.sources import is_run_folder, read_config_file
from fds_dist.config.yaml_text import dump_yaml, parse_yaml

Source = str | Path | Mapping[str, Any] | Config

STAND_INS: dict[str, dict[str, Any]] = {"task": {"name": "digits"}, "hyperparameters": {}}
"""What takes the place of required sections at fault, so that the other sections can still be checked further."""


Made = TypeVar("Made")

LEFT_OUT = object()

TANGENTS_DTYPE_IS_GONE = "tangents.dtype is gone: tangents have the dtype of the weights; remove the key"


@dataclass(frozen=True)
class Draft:
    """A config as far as it could be read, for further checks whose faults are to be reported with these."""

    config: Config | None
    """The config with whatever is at fault removed; None where nothing could be read."""

    faults: list[Fault]
    """Everything that is wrong."""

    broken: frozenset[str]
    """Dotted keys whose value in `config` is not the user's, because of a fault."""

    remarks: tuple[str, ...] = ()
    """What a person should know who wrote the config."""

    def is_broken(self, prefix: str) -> bool:
        """Whether this key, one above it or one below it is broken: then a check of it would mislead."""
        return any(_same_branch(prefix, key) for key in self.broken)


class Faults:
    """What is wrong with a draft and with the objects that it describes.

    A check of a key whose value is not the user's, since that is at fault, would mislead: its faults are left out.
    """

    def __init__(self, draft: Draft, replaced: str = "") -> None:
        """`replaced`: the section that an object from Python takes the place of; its faults do not matter."""
        self._draft, self._replaced = draft, replaced
        below = f"{replaced}."
        self.all = [fault for fault in draft.faults if not replaced or not f"{fault.key}.".startswith(below)]

    def is_sound(self, key: str) -> bool:
        """Whether the config has the user's value at this key, above it and below it."""
        return not self._draft.is_broken(key) or (key != "" and key == self._replaced)

    def add(self, faults: Iterable[Fault]) -> None:
        """Adds those faults whose keys are sound."""
        self.all += [fault for fault in faults if self.is_sound(fault.key)]

    def attempt(self, key: str, make: Callable[[], Made]) -> Made | None:
        """What `make` returns; None where `key` is not sound, or where `make` raises a `UserError`, which is added."""
        if not self.is_sound(key):
            return None
        try:
            return make()
        except UserError as error:
            self.all += error.faults
            return None


def read_draft(source: Source, overrides: Sequence[str] = ()) -> Draft:
    """Read a config, collecting all faults instead of stopping at the first.

    Args:
        source: path of a YAML file, the folder of a run, the name of a shipped config (`digits`, `paper/figure1`), or
            the config as a mapping.
        overrides: `key.sub=value`, with YAML values, applied in their order.
    """
    data, faults = read_mapping(source)
    for override in overrides:
        faults += _apply({} if data is None else data, override)
    broken = {fault.key for fault in faults if fault.key}
    tangents_dtype = LEFT_OUT if data is None else _without_tangents_dtype(data)
    texts = dict(references_in(data))
    for path, text in texts.items():
        missing = missing_faults(dotted(path), text)
        faults += missing
        broken |= {fault.key for fault in missing}
    config = None if data is None else _repaired(fill_in(data), faults, broken)
    if texts:
        faults = [as_written(fault, {dotted(path): text for path, text in texts.items()}) for fault in faults]
        config = None if config is None else config.with_references(texts)
    remarks = () if config is None else _remarks_on(source)
    if config is not None and tangents_dtype is not LEFT_OUT:
        if tangents_dtype in (None, config.dtype) or "dtype" in broken:
            remarks = remarks or (TANGENTS_DTYPE_IS_GONE,)  # nobody wrote the config of a run's folder
        else:
            problem = f"{tangents_dtype} differs from dtype {config.dtype}"
            faults.append(Fault("tangents.dtype", problem, f"{config.dtype}, or leave it out"))
            broken.add("tangents.dtype")
    return Draft(config, faults, frozenset(broken), remarks)


def _remarks_on(source: Source) -> tuple[str, ...]:
    """That a run's folder stands for its config."""
    if isinstance(source, (Config, Mapping)) or not is_run_folder(Path(expand_path(source))):
        return ()
    return (f"{source} is the folder of a run: its config is read; to continue that run: --resume {source}",)


def _without_tangents_dtype(data: dict[str, Any]) -> object:
    """Removes `tangents.dtype`, a key of earlier versions, and returns its value; `LEFT_OUT` where there is none."""
    tangents = data.get("tangents")
    return tangents.pop("dtype", LEFT_OUT) if isinstance(tangents, dict) else LEFT_OUT


def load_config(source: Source, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config; see `read_draft`.

    Raises:
        UserError: with every fault.
    """
    draft = read_draft(source, overrides)
    if draft.faults or draft.config is None:
        raise UserError(draft.faults)
    return draft.config


def dump_config(config: Config, width: int = 110, *, secrets: bool = True) -> str:
    """The resolved config as YAML: every default explicit, so that reading it gives an equal config.

    Args:
        width: columns after which lines are broken, where YAML allows it.
        secrets: False hides them, for people to look at; see `fds_dist.common.secrets`.
    """
    return dump_yaml(config.resolved() if secrets else hide_secrets(config.resolved()), width)


def read_mapping(source: Source) -> tuple[dict[str, Any] | None, list[Fault]]:
    """The source as plain values in fresh containers, or None where there is no mapping, and what is wrong so far."""
    faults: list[Fault] = []
    if isinstance(source, (Config, Mapping)):
        content = source
    else:
        try:
            content, faults = read_config_file(expand_path(source))
        except UserError as error:
            return None, list(error.faults)
        if content is None and faults:
            return None, faults
    content = _plain(content, (), faults)
    if isinstance(content, dict):
        return content, faults
    problem = "the file is empty" if content is None else f"the file holds {show(content)}"
    return None, [*faults, Fault("", f"{source}: {problem}", "a mapping from keys to values")]


def _plain(value: Any, path: KeyPath, faults: list[Fault]) -> Any:
    """Dicts, lists and plain scalars in place of their relatives (tuples, paths, NumPy's floats); a deep copy."""
    if isinstance(value, Section):
        return value.resolved()
    if len(path) > limits.CONFIG_DEPTH:
        faults.append(Fault(dotted(path[:1]), "lists or mappings are nested too deeply", "the keys of a config"))
        return None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                faults.append(Fault(dotted((*path, str(key))), "the key is not text", "a name (in quotes)"))
        return {key: _plain(item, (*path, key), faults) for key, item in value.items() if isinstance(key, str)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, (*path, index), faults) for index, item in enumerate(value)]
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return str(value) if isinstance(value, PurePath) else value


def _apply(data: dict[str, Any], override: str) -> list[Fault]:
    """Set one `key.sub=value` in `data`, creating the sections above it."""
    key, equals, text = override.partition("=")
    key = key.strip()
    path = tuple(key.split("."))
    if not equals or not all(path):
        return [Fault(override[: limits.NAME_LENGTH], "is not an override", "key=value, such as outer.steps=3")]
    if len(path) > limits.CONFIG_DEPTH:
        return [Fault(f"{key[: limits.NAME_LENGTH]}...", f"has {len(path):,} parts", "a key of the config")]
    value, faults = parse_yaml(text, prefix=key)
    if value is None and faults:
        return faults
    section = data
    for depth, part in enumerate(path[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            above = dotted(path[:depth])
            return [*faults, Fault(key, f"{above} is {show(section)}, which has no keys", f"{above}={{...}}")]
    section[path[-1]] = _plain(value, path, faults)
    return faults


def _repaired(data: dict[str, Any], faults: list[Fault], broken: set[str]) -> Config | None:
    """The config in `data` after removing, pass by pass, what is at fault; adds to `faults` and `broken`."""
    while True:
        try:
            return Config.model_validate(data)
        except ValidationError as error:
            new = findings(error)
        # The key that an unknown one was probably meant to be lacks the user's value, too.
        broken |= {finding.meant for finding in new if finding.meant and not _holds(data, finding.meant)}
        faults += [finding.fault for finding in new if not _is_consequence(finding, broken)]
        broken |= {finding.fault.key for finding in new}
        removed = {_remove(data, finding) for finding in new} - {""}
        if not removed:  # nothing left to try: every other pass shrinks the data
            return None
        broken |= removed


def _is_consequence(finding: Finding, broken: set[str]) -> bool:
    """Whether a fault is only there because of what was removed before."""
    if not finding.missing and not finding.related:
        return False
    return any(_same_branch(key, other) for key in (finding.fault.key, *finding.related) for other in broken)


def _remove(data: dict[str, Any], finding: Finding) -> str:
    """Remove the value at fault (the section around a missing one, the list around an entry), and say its key."""
    path = finding.path[:-1] if finding.missing else finding.path
    names = tuple(itertools.takewhile(lambda part: isinstance(part, str), path))
    if not names:
        required = str(finding.path[0])
        data[required] = copy.deepcopy(STAND_INS[required])
        return required
    section: Any = data
    for name in names[:-1]:
        section = section.get(name, {})
    return dotted(names) if section.pop(names[-1], LEFT_OUT) is not LEFT_OUT else ""


def _holds(data: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(data, dict) or name not in data:
            return False
        data = data[name]
    return True


def _same_branch(key: str, other: str) -> bool:
    """Whether the keys are the same, or one is above the other."""
    short, long = sorted((key, other), key=len)
    return long == short or long.startswith((f"{short}.", f"{short}["))
