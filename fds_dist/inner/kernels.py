"""GPU kernels that would give ranks of one inner run other bits: refused by name before training."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch.utils._pytree import tree_map

from fds_dist.common.batch import Part
from fds_dist.common.faults import Fault, UserError
from fds_dist.common.words import few
from fds_dist.distributed.arithmetic import kernels_of
from fds_dist.distributed.mesh import Ranks
from fds_dist.inner.plain_training import first_steps
from fds_dist.inner.problem import Problem
from fds_dist.tangents import EXACT_METHODS
from fds_dist.tangents.methods import TrialPoint
from fds_dist.tasks.base import validation_loss
from fds_dist.tasks.losses import OnBatch

_NOT_DETERMINISTIC = r"(\S+) does not have a deterministic implementation"
_FAILURES = (RuntimeError, NotImplementedError, ValueError, TypeError)
WAY_OUT = "consistency.mode=broadcast or off, which do not ask for them, or a network without it"


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Inside, operators without a deterministic kernel run although PyTorch was told to refuse them.

    Raises:
        UserError: at the end, there were some; each is named.
    """
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(True)
    names = {}
    for warning in caught:
        if match := re.search(_NOT_DETERMINISTIC, str(warning.message)):
            names[match[1]] = None
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if names:
        problem = f"verify asks for deterministic kernels, and {few(list(names))} has none on this GPU"
        raise UserError(Fault("consistency.mode", problem, WAY_OUT))


def run_kernels(problem: Problem, method: str, point: TrialPoint, val_part: Part) -> None:
    """Runs what training runs, once: a gradient, a product by `method` and the gradient of the validation loss.

    Where an operator has no derivative nothing is said: the choice of a method says it.

    Args:
        method: `tangents.method` of the config.
    """
    network = point.loss.network
    methods = EXACT_METHODS if method == "auto" else () if method == "difference" else (method,)
    live = {name: point.buffers[name] for name in network.live}
    zeros = tree_map(lambda tensor: torch.zeros_like(tensor)[None], (point.weights, point.theta, live))
    for each in methods:
        with suppress(*_FAILURES):
            point.by(each).products(*zeros)
            break
    for part, loss_of in ((point.part, None), (val_part, OnBatch(validation_loss(problem.task)))):
        weights = point.weights.detach().requires_grad_()
        with suppress(*_FAILURES):
            if loss_of is None:
                loss = point.loss(weights, point.theta, point.buffers, part)[0]
            else:
                loss = loss_of(network(weights, point.buffers, part.inputs)[0], part.batch)
            network.differentiate(loss, weights)


def check_alike(problem: Problem, ranks: Ranks, mode: str, estimator: str) -> None:
    """Compares what decides the bits of ranks that replay one run: their GPUs, versions, method and chunk.

    Args:
        mode: `consistency.mode`.
        estimator: its name in the config.

    Raises:
        UserError: on every rank; ranks of one tangent axis differ, or cannot be healed where `mode` is to heal them.
    """
    if ranks.shape.tangent == 1 or mode == "off":
        return
    facts = kernels_of(ranks.device) | {"method": problem.tangents.method, "chunk": str(problem.chunk_size)}
    everyone = ranks.gather_objects((ranks.replica, ranks.data.rank, facts))
    if ranks.device.type == "cuda" and mode == "broadcast" and estimator == "reverse":
        text = "broadcast cannot heal estimator reverse, which computes its steps anew on every rank"
        raise UserError(Fault("consistency.mode", text, "verify, or estimator: forward"))
    difference = _first_difference(everyone)
    if not difference:
        return
    if mode == "verify":
        raise UserError(Fault("consistency.mode", f"verify needs ranks that are alike: {difference}", ALIKE))
    if first_steps(problem, 1).draws_random_numbers():
        text = f"broadcast cannot heal dropout, whose masks depend on the GPU: {difference}"
        raise UserError(Fault("consistency.mode", text, "like GPUs along mesh.tangent, or a network without dropout"))


ALIKE = "like GPUs and versions along mesh.tangent (others along mesh.replica), or consistency.mode=broadcast"


def _first_difference(everyone: Sequence[tuple[int, int, Mapping[str, str]]]) -> str:
    """What ranks of one tangent axis, which have the same first two numbers, differ in; "" where they are alike."""
    firsts: dict[tuple[int, int], int] = {}
    for rank, (replica, place, facts) in enumerate(everyone):
        first = firsts.setdefault((replica, place), rank)
        reference = everyone[first][2]
        names = [name for name in facts if facts[name] != reference.get(name)]
        if names:
            both = few([f"{name} {facts[name]} and {reference.get(name)}" for name in names])
            return f"rank {rank} and rank {first} have {both}"
    return ""
