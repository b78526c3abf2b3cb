"""A program that loads the library of `pretend_cuda.cpp`, then torch, and runs scenarios: `LIBRARY [PATTERN]`.

For each scenario it prints one line of JSON.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from pathlib import Path


def load(library: str) -> None:
    """Torch finds the device guard and the hooks of `library` only if they are there before it."""
    assert "torch" not in sys.modules
    specification = importlib.util.find_spec("torch")
    assert specification is not None and specification.submodule_search_locations
    folder = Path(specification.submodule_search_locations[0]) / "lib"
    for path in (folder / "libc10.so", folder / "libtorch_cpu.so", library):
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


if __name__ == "__main__":
    load(sys.argv[1])
    from pretended_scenarios import run_all

    run_all(sys.argv[2] if len(sys.argv) > 2 else "")
