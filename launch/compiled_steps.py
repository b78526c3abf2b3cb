"""Steps of an inner run with tangents, eager and compiled, beside a plain step: one JSON line per figure.

    python launch/compiled_steps.py [--networks mlp lenet wrn-16-1] [--tangents 1 4 9 16]
                                    [--ways off trace inductor fewer-kernels]
                                    [--chunk 16] [--batch 64] [--seconds 240] [--no-cuda-graph]

Networks are measured on random images, on a GPU where there is one. Each network is compiled once, for chunks of
`--chunk` tangents, whatever the number of live ones. Every way is compared with the eager one: `error` is the relative
difference of the tangents after three steps, and `way` is the one that was taken in the end. What does not fit into
`--seconds` is left out. The way `fewer-kernels` is inductor with options for a GPU that no run takes before one has
timed them beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch._inductor import config as inductor_config

from fds_dist.build import build
from fds_dist.commands.bench.by_hand import PlainStep
from fds_dist.commands.bench.kernels import kernels_per_step
from fds_dist.commands.inputs import draft_of
from fds_dist.distributed.devices import reproducible_threads
from fds_dist.distributed.environment import read_environment
from fds_dist.inner.problem import Problem
from fds_dist.inner.stopwatch import Stopwatch, run_steps, time_steps
from fds_dist.models import build_model
from fds_dist.tangents.compiled import WAYS
from fds_dist.tasks.datasets import TensorTask

SHAPES = {"mlp": (1, 28, 28), "lenet": (1, 28, 28), "wrn-16-1": (3, 32, 32), "wrn-10-1": (3, 8, 8)}
BATCHES = 32
"""Of an epoch, whose permutation is drawn at its first step."""
HYPERPARAMETERS = {
    "lr": {"init": 0.05, "step": 0.05},
    "momentum": {"init": 0.5, "step": 0.1},
    "weight_decay": {"init": 1e-4, "step": 1e-4},
}

FEWER_KERNELS = {"split_reductions": False, "force_pointwise_cat": True}
"""Each reduction is one kernel, whose few blocks then read much; so is what puts tensors together."""


def problem_of(name: str, batch: int, chunk: int) -> Problem:
    """A problem on random images, with batched tangents."""
    shape, random = SHAPES[name], torch.Generator().manual_seed(0)
    count = BATCHES * batch
    images, labels = torch.randn(count, *shape, generator=random), torch.randint(10, (count,), generator=random)
    task = TensorTask(images, labels, batch_size=batch, seed=0)
    config: dict[str, Any] = {"inner": {"optimizer": "sgd", "epochs": 1}, "hyperparameters": HYPERPARAMETERS}
    config |= {"tangents": {"method": "jvp", "chunk_size": chunk}, "consistency": {"witness": "off"}}
    return build(
        draft_of(config, (), None, task),
        read_environment(),
        task,
        lambda seed: build_model(name, {}, input_shape=shape, classes=10, seed=seed),
    ).problem


def by_way(problem: Problem, way: str, chunk: int, cuda_graph: bool) -> Problem:
    """The problem with its steps taken so."""
    compiled = "inductor" if way == "fewer-kernels" else way
    tangents = replace(problem.tangents, compile=compiled, compiled_chunk=chunk, cuda_graph=cuda_graph)
    return replace(problem, tangents=tangents)


def told(way: str) -> AbstractContextManager[object]:
    """Within it the compiler has the options of the way."""
    return inductor_config.patch(FEWER_KERNELS) if way == "fewer-kernels" else nullcontext()


def measured(problem: Problem, tangents: int, exact: torch.Tensor, plain: float) -> dict[str, Any]:
    """The figures of one way with so many tangents."""
    error = float((run_steps(problem, tangents, 3)[1].weights - exact).norm() / exact.norm())
    median = settled(lambda: time_steps(problem, tangents))
    compiled = problem.tangents.compile != "off"
    return {
        "ms": 1000 * median,
        "over_limit": median / (plain * (1 + 2 * tangents)),
        "error": error,
        "kernels": kernels_per_step(lambda count: run_steps(problem, tangents, count), problem.device),
        "way": WAYS[problem.compiled_steps.way] if compiled else "off",
        "cuda_graph": compiled and problem.compiled_steps.capture,
        "calls": problem.compiled_steps.calls_for(tangents) if compiled else problem.chunk_size,
    }


def plain_seconds(problem: Problem) -> float:
    """A step of training in plain PyTorch."""
    step = PlainStep(problem)

    def timed() -> Stopwatch:
        watch = Stopwatch(problem.device)
        step()
        while watch():
            step()
        return watch

    return settled(timed)


def settled(timed: Callable[[], Stopwatch]) -> float:
    """The median of some steps after others, in which the process takes its memory and learns which calls are fast."""
    timed()
    return statistics.median(timed().seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["mlp", "lenet", "wrn-16-1"], choices=SHAPES)
    parser.add_argument("--tangents", nargs="+", type=int, default=[1, 4, 9, 16])
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=(*WAYS, "fewer-kernels"))
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--no-cuda-graph", action="store_true")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    for name in options.networks:
        problem = problem_of(name, options.batch, options.chunk)
        with reproducible_threads(problem.device):
            plain = plain_seconds(problem)
            device = torch.cuda.get_device_name() if problem.device.type == "cuda" else "cpu"
            print(json.dumps({"network": name, "device": device, "plain_ms": 1000 * plain}), flush=True)
            exact = {k: run_steps(problem, k, 3)[1].weights for k in options.tangents}
            for way in options.ways:
                chosen, began = by_way(problem, way, options.chunk, not options.no_cuda_graph), time.monotonic()
                for k in options.tangents:
                    if time.monotonic() > ends:
                        print(json.dumps({"network": name, "asked": way, "k": k, "left_out": "no time left"}))
                        continue
                    with told(way):
                        row = measured(chosen, k, exact[k], plain)
                    made = {"with_compilation_s": time.monotonic() - began} if k == options.tangents[0] else {}
                    print(json.dumps({"network": name, "asked": way, "k": k, **row, **made}), flush=True)


if __name__ == "__main__":
    main()
