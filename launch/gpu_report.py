"""What launch/gpu_report.sh runs: each part in a process of its own with a share of the time, and one JSON file of all.

As `python launch/gpu_report.py search FILE.json` it is one of the parts: a search like that of figure 1 of the paper.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
DEVICE = os.environ.get("FDS_DIST_DEVICE", "cuda")
TAIL = 4000
"""Characters of a part's output that the report keeps: its end tells why it failed."""
MINDED = 0.7
"""The part of its time that a part is told of: it also has to start, and what it began last has to end."""
GRACE = 5.0
"""Seconds that a part has to write what it found when its time is over."""


@dataclass(frozen=True)
class Part:
    """A part of the report."""

    share: float
    """Of the time."""
    command: Callable[[float, Path], list[str]]
    """(seconds, the file for its figures) → the command."""
    figures: Callable[[Path, str], Any]
    """(that file, standard output) → JSON values."""


def gpu_tests(seconds: float, file: Path) -> list[str]:
    marked = [path for path in sorted(ROOT.glob("tests/*/test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]
    return ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={file}", *map(str, marked)]


def outcomes(file: Path, output: str) -> dict[str, Any]:
    """How many tests ended how, why those failed that did, and which were the slowest."""
    cases = list(ElementTree.parse(file).getroot().iter("testcase"))
    failed = {
        f"{case.get('classname')}::{case.get('name')}": (problem.get("message") or "").splitlines()[:3]
        for case in cases
        for problem in (*case.findall("failure"), *case.findall("error"))
    }
    seconds = {f"{case.get('classname')}::{case.get('name')}": float(case.get("time") or 0.0) for case in cases}
    slowest = dict(sorted(seconds.items(), key=lambda pair: -pair[1])[:10])
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"tests": len(cases), "skipped": skipped, "failed": failed, "slowest": slowest}


def bench(seconds: float, file: Path) -> list[str]:
    return ["-m", "fds_dist", "bench", "--seconds", f"{seconds:.0f}", "--json", str(file), f"device={DEVICE}"]


def compiled_steps(seconds: float, file: Path) -> list[str]:
    return [str(ROOT / "launch/compiled_steps.py"), "--seconds", f"{seconds:.0f}"]


def fewer_kernels(seconds: float, file: Path) -> list[str]:
    of = ["--networks", "wrn-16-1", "--tangents", "9", "1", "--ways", "inductor", "fewer-kernels"]
    return [*compiled_steps(seconds, file), *of, "--chunk", "9"]


def search(seconds: float, file: Path) -> list[str]:
    return [str(Path(__file__)), "search", str(file), "--seconds", f"{seconds:.0f}"]


def from_file(file: Path, output: str) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def from_lines(file: Path, output: str) -> list[Any]:
    """The JSON lines of the output, of a part that was stopped too."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{") and line.endswith("}")]


PARTS = {
    "tests": Part(0.33, gpu_tests, outcomes),
    "search": Part(0.17, search, from_file),
    "bench": Part(0.2, bench, from_file),
    "steps": Part(0.3, compiled_steps, from_lines),
    "kernels": Part(0.3, fewer_kernels, from_lines),
}
ON_REQUEST = ("kernels",)
"""Parts that compare what no run does yet."""


def run_part(part: Part, seconds: float, folder: Path) -> dict[str, Any]:
    """The figures of a part, how it ended and how long it took."""
    began, file = time.monotonic(), folder / "figures.json"
    command = [sys.executable, *part.command(MINDED * seconds, file)]
    log = folder / "output"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status: Any = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:.0f} s"
            _stop(process)
    text = log.read_text(errors="replace")
    result = {"status": status, "seconds": round(time.monotonic() - began, 1), "figures": None, "output": text[-TAIL:]}
    try:
        result["figures"] = part.figures(file, text)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        result["without_figures"] = f"{type(error).__name__}: {error}"
    return result


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupts the part and all its processes, so that pytest still writes what it has; then ends them."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    code = """
import json, platform, torch
gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
facts = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
facts |= {"cudnn": torch.backends.cudnn.version(), "gpus": torch.cuda.device_count(), "gpu": gpu and gpu.name}
facts |= {"multiprocessors": gpu and gpu.multi_processor_count, "bytes": gpu and gpu.total_memory}
print(json.dumps(facts))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout) if done.returncode == 0 else {"problem": done.stderr[-TAIL:]}


def run_report(target: Path, seconds: float, names: Sequence[str]) -> int:
    """Writes the file after each part, so that a report that is cut off keeps what it has."""
    report: dict[str, Any] = {"machine": machine(), "parts": {}}
    total = sum(PARTS[name].share for name in names)
    for name in names:
        limit = seconds * PARTS[name].share / total
        print(f"{name}: at most {limit:.0f} s", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            report["parts"][name] = result = run_part(PARTS[name], limit, Path(folder))
        target.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: status {result['status']}, {result['seconds']} s", flush=True)
        if result["status"] != 0:
            print(result["output"], flush=True)
    print(f"results: {target}")
    return int(any(result["status"] != 0 for result in report["parts"].values()))


def run_search(target: Path, seconds: float) -> int:
    """Figure 1 of the paper for as many outer steps as the time allows, on random images of CIFAR-10's shape: it is the
    shape that decides times and memory."""
    import torch

    import fds_dist

    random = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (5120,), generator=random)
    pictures = torch.randn(5120, 3, 32, 32, generator=random) + 0.1 * labels[:, None, None, None]
    pairs = torch.utils.data.TensorDataset(pictures, labels)
    batch = 256 if DEVICE == "cuda" else 8
    task = fds_dist.task_from_datasets(pairs, val=torch.utils.data.Subset(pairs, range(256)), batch_size=batch)
    overrides = ["inner.epochs=null", "inner.steps=70", "outer.steps=4", f"outer.timeout={seconds / 2}"]
    if DEVICE == "cpu":
        overrides += ["inner.steps=7", "outer.steps=1", "model.name=wrn-10-1", "consistency.witness=off"]
    began = time.monotonic()
    run = fds_dist.optimize(
        ROOT / "configs/paper/figure1.yaml", [*overrides, f"device={DEVICE}"], task=task, progress=False
    )
    steps = [json.loads(record.to_json()) for record in run.history]
    figures = {"batch": batch, "seconds_in_all": time.monotonic() - began, "outer_steps": steps}
    target.write_text(json.dumps(figures), encoding="utf-8")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where a part failed or was stopped."""
    parser = argparse.ArgumentParser(prog="launch/gpu_report.sh", allow_abbrev=False)
    if arguments[:1] == ["search"]:
        parser.add_argument("part")
    parser.add_argument("file", nargs="?", type=Path, default=Path("gpu_report.json"))
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[name for name in PARTS if name not in ON_REQUEST])
    options = parser.parse_args(arguments)
    if "part" in options:
        return run_search(options.file, options.seconds)
    return run_report(options.file.absolute(), options.seconds, options.parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
