"""Tangents that are not exact derivatives by design (`clip_hvp`, pruning) against the recursion written out.

With v ← μv + g + ξw and w ← w − αv the tangents of SGD are, by hand (FDS, arXiv 2007.07869, equation 3),

    C ← μC + HZ + ξZ + [α: 0 | μ: v_old | ξ: w_old]·active,    Z ← Z − αC − [α: v_new]·active

with the dense Hessian H of a tiny network. On a step that pruning skips, Z and C stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from problems import Buckets, TensorTask, flat, image_task, make_problem, mlp, relative_error
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fds_dist.inner.estimators import estimate_forward
from fds_dist.inner.horizon import run_horizon
from fds_dist.inner.run import InnerRun
from fds_dist.tangents import EXACT_METHODS, METHODS, Point
from fds_dist.tangents.step import Pruning

EXACT = 1e-12
"""Float64 rounding through ten steps, with room."""

HORIZON = 10
BUCKETS = {"lr": [0.2, 0.1], "momentum": [0.6], "weight_decay": [0.02, 0.01]}
ALL = range(HORIZON)
KEEP_ALL = dict.fromkeys(BUCKETS, ALL)


def hand_recursion(
    task: TensorTask, buckets: Buckets, clip: float = float("inf"), kept: dict[str, Any] = KEEP_ALL
) -> tuple[Tensor, Tensor, Tensor]:
    """w_T [D], Z_T [K, D] and the products H·Z [T, K, D]; tangents of hyperparameter `name` move on `kept[name]`."""
    module = task.build_model(0).double()
    names, shapes = zip(*((name, p.shape) for name, p in module.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]
    w = nn.utils.parameters_to_vector(module.parameters()).detach()
    elements = [(name, bucket) for name, row in buckets.items() for bucket in range(len(row))]
    v, z, c = torch.zeros_like(w), w.new_zeros(len(elements), len(w)), w.new_zeros(len(elements), len(w))
    batches, seen = list(task.train_batches(0, 0)), []
    for step in range(HORIZON):
        inputs, targets = batches[step % len(batches)]

        def loss(vector: Tensor, inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            parts = [part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]
            return F.cross_entropy(functional_call(module, dict(zip(names, parts, strict=True)), (inputs,)), targets)

        gradient, hessian = torch.func.grad(loss)(w), torch.func.hessian(loss)(w)
        active = {name: len(row) * step // HORIZON for name, row in buckets.items()}
        lr, momentum, decay = (buckets[name][active[name]] for name in ("lr", "momentum", "weight_decay"))
        seen.append(z @ hessian)
        new_v = momentum * v + gradient + decay * w
        new_c = momentum * c + seen[-1].clamp(-clip, clip) + decay * z
        new_z = torch.empty_like(z)
        for row, (name, bucket) in enumerate(elements):
            on = active[name] == bucket
            if on and name != "lr":
                new_c[row] += v if name == "momentum" else w
            new_z[row] = z[row] - lr * new_c[row] - (new_v if on and name == "lr" else 0.0)
            if step not in kept[name]:
                new_z[row], new_c[row] = z[row], c[row]
        w, v, z, c = w - lr * new_v, new_v, new_z, new_c
    return w, z, torch.stack(seen)


def tangents_of(task: TensorTask, **options: Any) -> tuple[Tensor, Tensor]:
    """w_T [D] and Z_T [K, D] of the engine, in the order of λ."""
    problem = make_problem(task, BUCKETS, **options)
    starts = problem.space.starts(HORIZON)
    order = sorted(range(len(starts)), key=lambda element: (starts[element], element))
    training, tangents = run_horizon(InnerRun(problem, flat(BUCKETS), 0, HORIZON), order)
    assert list(tangents.elements) == order
    return training.state.weights, tangents.weights[[order.index(element) for element in range(len(order))]]


@pytest.mark.parametrize("chunk_size", [1, 2, 16])
@pytest.mark.parametrize("method", list(EXACT_METHODS))
def test_tangents_equal_the_recursion_written_out(method: str, chunk_size: int) -> None:
    task = image_task(mlp)
    weights, expected, _ = hand_recursion(task, BUCKETS)
    found_weights, found = tangents_of(task, method=method, chunk_size=chunk_size)
    assert relative_error(found_weights, weights) < EXACT
    assert relative_error(found, expected) < EXACT


@pytest.mark.parametrize("method", list(EXACT_METHODS))
def test_clipped_products_equal_the_recursion_written_out(method: str) -> None:
    task, clip = image_task(mlp), 0.05
    _, expected, products = hand_recursion(task, BUCKETS, clip)
    live = products[products != 0]
    assert 0.05 < (live.abs() > clip).double().mean() < 0.95  # a good share is clipped
    assert relative_error(tangents_of(task, method=method, clip_hvp=clip)[1], expected) < EXACT
    assert relative_error(expected, hand_recursion(task, BUCKETS)[1]) > 0.01  # and that makes a difference


PRUNED = {
    # Windows: 5 + 5 steps for two buckets, 10 for one.
    "alternate_half": (Pruning("alternate", 0.5), {5: (0, 2, 4), 10: (0, 2, 4, 6, 8)}),
    "truncate_two_fifths": (Pruning("truncate", 0.4), {5: (2, 3, 4), 10: (4, 5, 6, 7, 8, 9)}),
}


@pytest.mark.parametrize("chunk_size", [1, 2, 16])
@pytest.mark.parametrize("name", PRUNED)
def test_tangents_stay_on_the_steps_that_pruning_skips(name: str, chunk_size: int) -> None:
    pruning, offsets = PRUNED[name]
    kept: dict[str, Collection[int]] = {
        name: [window * bucket + offset for bucket in range(len(row)) for offset in offsets[window]]
        for name, row in BUCKETS.items()
        for window in [HORIZON // len(row)]
    }
    task = image_task(mlp)
    weights, expected, _ = hand_recursion(task, BUCKETS, kept=kept)
    found_weights, found = tangents_of(task, pruning=pruning, chunk_size=chunk_size)
    assert relative_error(found_weights, weights) < EXACT
    assert relative_error(found, expected) < EXACT
    assert relative_error(found, hand_recursion(task, BUCKETS)[1]) > 0.01


def count_products(method: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that fills with the number of tangents of each call to `products`."""
    asked: list[int] = []
    make_point = METHODS[method]

    def make_counting_point(*arguments: Any) -> Point:
        point = make_point(*arguments)
        products = point.products

        def counted(tangents: Tensor, *others: Any) -> Any:
            asked.append(len(tangents))
            return products(tangents, *others)

        point.products = counted  # type: ignore[method-assign]
        return point

    monkeypatch.setitem(METHODS, method, make_counting_point)
    return asked


@pytest.mark.parametrize(("pruning", "share"), [(Pruning(), 1.0), (Pruning("truncate", 0.5), 0.5)])
def test_tangents_of_buckets_that_have_not_begun_are_not_computed(
    pruning: Pruning, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_products("double_backward", monkeypatch)
    buckets = {"lr": [0.2, 0.1], "momentum": [0.6], "weight_decay": [0.02, 0.01, 0.02, 0.01]}
    problem = make_problem(image_task(mlp), buckets, pruning=pruning)
    estimate_forward(InnerRun(problem, flat(buckets), 0, 16))
    # Buckets begin at 0 and 8 (lr), 0 (momentum), 0, 4, 8 and 12 (weight decay); all windows halve evenly.
    assert sum(asked) == share * sum(16 - start for start in (0, 8, 0, 0, 4, 8, 12))


def test_buckets_that_do_not_divide_the_horizon_begin_at_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = count_products("double_backward", monkeypatch)
    buckets = {"lr": [0.2, 0.1, 0.1]}
    estimate_forward(InnerRun(make_problem(image_task(mlp), buckets), flat(buckets), 0, 13))
    # Step t reads bucket ⌊3t/13⌋: bucket 1 from t = 5 (15/13), bucket 2 from t = 9 (27/13).
    assert sum(asked) == 13 + 8 + 4


@pytest.mark.parametrize(("chunk_size", "expected"), [(2, [2, 1]), (None, [1, 1, 1]), (16, [3])])
def test_products_are_asked_for_in_chunks(
    chunk_size: int | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = count_products("jvp", monkeypatch)
    problem = make_problem(image_task(mlp), BUCKETS, method="jvp", chunk_size=chunk_size)
    run_horizon(InnerRun(problem, flat(BUCKETS), 0, 2), (0, 2, 3))
    assert asked == expected * 2  # two steps
