"""Where a config comes from: a file, the folder of a run, or the name of a config that ships with the package."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from pathlib import Path

from fds_dist.common import limits
from fds_dist.common.access import access_problem
from fds_dist.common.faults import Fault
from fds_dist.common.registry import nearest
from fds_dist.common.words import bytes_text
from fds_dist.config.yaml_text import parse_yaml

SHIPPED = Path(__file__).resolve().parents[1] / "configs"
"""The configs that ship with the package; in the repository a link to its folder `configs`."""

SUFFIXES = (".yaml", ".yml")

OF_A_RUN = "config.yaml"
"""The resolved config in a run's folder."""

FILE = "the path of a YAML file"


def shipped_configs() -> dict[str, Path]:
    """Name → file of each shipped config: `digits`, `paper/figure1`. Files of sweeps are none."""
    files = (path for path in sorted(SHIPPED.rglob("*.yaml")) if path.parent.name != "sweeps")
    return {path.relative_to(SHIPPED).with_suffix("").as_posix(): path for path in files}


def nearest_shipped(name: str) -> list[str]:
    """The names of shipped configs that `name` was most likely meant to be, the most likely one first."""
    names, meant = list(shipped_configs()), Path(name.casefold().removeprefix("configs/"))
    meant = meant.with_suffix("") if meant.suffix in SUFFIXES else meant
    same = [each for each in names if each.rpartition("/")[2] == meant.name]
    return list(dict.fromkeys([*same, *difflib.get_close_matches(meant.as_posix(), names, n=3)]))


def is_run_folder(path: Path) -> bool:
    """Whether the folder holds a run's config."""
    return os.path.isfile(path / OF_A_RUN)


def config_file(path: Path) -> Path:
    """The file that `path` means: itself, the config of a run's folder, or a shipped config of that name.

    What lies in the working directory wins over a shipped config of the same name.
    """
    if is_run_folder(path):
        return path / OF_A_RUN
    return path if os.path.isfile(path) else shipped_configs().get(path.as_posix(), path)


def read_config_file(path: Path) -> tuple[object, list[Fault]]:
    """What the file of `path` (see `config_file`) holds, and what is wrong with it or with the path."""
    try:
        file = config_file(path)
        text = _start_of(file)
    except FileNotFoundError:
        return None, [_absent(path)]
    except IsADirectoryError:
        return None, [Fault("", f"{path}: Is a directory that holds no {OF_A_RUN}", f"{FILE}, or the folder of a run")]
    except UnicodeDecodeError:
        return None, [Fault("", f"{path}: not a text file in UTF-8", FILE)]
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        return None, [Fault("", f"{path}: {getattr(error, 'strerror', None) or error}", FILE)]
    if text is None:
        return None, [Fault("", f"{path}: more than {bytes_text(limits.CONFIG_BYTES)}, which no config has", FILE)]
    return parse_yaml(text, source=str(file))


def _start_of(file: Path) -> str | None:
    """The text of a file that may have no end, such as a device; None where it is too long for a config."""
    with file.open("rb") as stream:
        content = stream.read(limits.CONFIG_BYTES + 1)
    return None if len(content) > limits.CONFIG_BYTES else content.decode("utf-8-sig")


def _absent(path: Path) -> Fault:
    """There is no such file: what was meant is beside it, or ships with the package."""
    if problem := access_problem(path):
        return Fault("", problem, FILE)
    folder = path.parent
    beside = []
    with suppress(OSError):
        beside = [entry.name for entry in folder.iterdir() if entry.is_file()]
    if name := nearest(path.name, beside if path.suffix in SUFFIXES else ()):
        return Fault("", f"{path}: no such file", suggestion=str(folder / name))
    problem = "no such file" if os.path.isdir(folder) else f"there is no folder {folder}"
    if shipped := nearest_shipped(path.as_posix()):
        expected = f"{FILE}, the folder of a run, or a shipped config such as {', '.join(shipped)}"
        return Fault("", f"{path}: {problem}", expected, shipped[0])
    name = nearest(path.name, beside)
    return Fault("", f"{path}: {problem}", "" if os.path.isdir(folder) else FILE, str(folder / name) if name else "")
