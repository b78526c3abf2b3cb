"""Batches of any structure: hypergradients against reverse mode by hand, on one and two ranks, and bad batches."""

from __future__ import annotations

import json
from collections import namedtuple
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import structured_batches
import torch
from launching import start_ranks
from problems import ONE_RANK, relative_error
from selection import slow_unless, wanted
from structured_batches import KINDS, STEPS, Kind, StructuredTask, buckets_of, draw, estimated, problem_of, run_of
from torch import Tensor, nn
from torch.func import functional_call

import fds_dist
from fds_dist.common.batch import call, checked_batch, common_rows, first_samples, named_leaves, samples_in
from fds_dist.common.faults import UserError
from fds_dist.distributed.fingerprint import batch_fingerprint
from fds_dist.inner.estimators import estimate_forward, estimate_reverse
from fds_dist.inner.measurement import measure_step
from fds_dist.tasks.inspection import check_finite, same_batch
from fds_dist.tasks.losses import OnBatch

EXACT = 1e-12
"""Float64 rounding (1e-16) through six steps of two methods, and sums over parts in another order."""


def unrolled_hypergradients(kind: Kind) -> list[float]:
    """Reverse mode through the whole run, SGD with momentum written out, and the network called by hand."""
    values = {
        name: torch.tensor(row, dtype=torch.float64, requires_grad=True) for name, row in buckets_of(kind).items()
    }
    module = StructuredTask(kind).build_model(0).double()
    weights: dict[str, Tensor] = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}

    def network(*positions: Any, **keywords: Any) -> Any:
        return functional_call(module, weights, positions, keywords)

    for step in range(STEPS):
        h = {name: row[len(row) * step // STEPS] for name, row in values.items()}
        loss = kind.by_hand(network, draw("train", step % 3), h)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        for (name, w), g in zip(list(weights.items()), gradients, strict=True):
            velocity[name] = h["momentum"] * velocity[name] + g
            weights[name] = w - h["lr"] * velocity[name]
    without_smoothing = {"smoothing": torch.zeros((), dtype=torch.float64)}
    loss = kind.by_hand(network, draw("val"), without_smoothing)
    return torch.cat(torch.autograd.grad(loss, list(values.values()))).tolist()


@pytest.mark.parametrize("name", KINDS)
def test_hypergradients_are_those_of_reverse_mode_by_hand(name: str) -> None:
    expected = unrolled_hypergradients(KINDS[name])
    assert all(expected)
    for method in ("jvp", "double_backward"):
        assert relative_error(estimate_forward(run_of(name, ONE_RANK, method)).hypergradients, expected) < EXACT
    assert relative_error(estimate_reverse(run_of(name, ONE_RANK)).hypergradients, expected) < EXACT


@pytest.mark.parametrize("name", KINDS)
def test_a_run_passes_the_witness(name: str, tmp_path: Path) -> None:
    """The dry run, the comparison with plain PyTorch in float64 and a run in float32."""
    kind = KINDS[name]
    learned = {key: {"init": row[0], "step": 0.1} for key, row in buckets_of(kind).items()}
    config = {
        "inner": {"epochs": 1},
        "hyperparameters": learned,
        "outer": {"optimizer": "sign", "steps": 1},
        "tangents": {"method": "jvp"},
        "output_dir": str(tmp_path),
    }
    result = fds_dist.optimize(config, task=StructuredTask(kind), progress=False)  # type: ignore[arg-type]
    (record,) = result.history
    assert all(record.hypergradients["lr"])


class Lazy(nn.Module):
    """Learns its shapes from the first inputs, which are keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(3)

    def forward(self, x: Tensor, z: dict[str, Tensor], scale: Tensor) -> Tensor:
        return self.head(torch.cat([x, scale * z["inner"]], 1))


def test_a_lazy_network_learns_its_shapes_from_a_structured_batch(tmp_path: Path) -> None:
    learned = {"lr": {"init": 0.1, "step": 0.1}}
    config = {
        "hyperparameters": learned,
        "inner": {"epochs": 1},
        "outer": {"optimizer": "sign", "steps": 1},
        "output_dir": str(tmp_path),
    }
    task: Any = StructuredTask(KINDS["nested"])
    (record,) = fds_dist.optimize(config, task=task, model=Lazy(), progress=False).history
    assert all(record.hypergradients["lr"])


@pytest.mark.parametrize(("name", "parts"), [("mapping with its own loss", 1), ("nested", 2)])
def test_a_step_is_measured_on_few_samples_of_any_structure(name: str, parts: int) -> None:
    measured = measure_step(problem_of(name), parts)
    assert measured.plain_seconds > 0 and not measured.extrapolated


def test_a_step_on_parts_that_the_network_cannot_take_is_refused_as_in_a_run() -> None:
    with pytest.raises(UserError, match="the network gives a single number, such as a loss, and sees a part"):
        measure_step(problem_of("mapping with its own loss"), parts=2)


# ---- two ranks ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_rank(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Per rank of two, what it got."""
    folder = tmp_path_factory.mktemp("structures")
    (folder / "wanted.json").write_text(json.dumps(wanted(request, "name", "axis")))
    ended = start_ranks([structured_batches.__file__, str(folder)], 2, [folder])
    assert [(rank.status, rank.err) for rank in ended] == [(0, "")] * 2
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def kept(name: str, axis: str) -> bool:
    """Whether CI has a kind: each where its batches are split, and three very unlike ones where they are not."""
    return axis == "data" or name in ("mapping with its own loss", "nested", "the whole batch and a hyperparameter")


@pytest.mark.parametrize(("name", "axis"), slow_unless(kept, product(KINDS, ["tangent"])))
def test_tangent_ranks_get_the_same_bits(name: str, axis: str, by_rank: list[dict[str, Any]]) -> None:
    alone = estimated(name, ONE_RANK)
    assert [rank[f"{axis} {name}"] for rank in by_rank] == [alone, alone]


@pytest.mark.parametrize(("name", "axis"), slow_unless(kept, product(KINDS, ["data"])))
def test_data_ranks_agree_to_rounding_or_are_refused(name: str, axis: str, by_rank: list[dict[str, Any]]) -> None:
    got, other = (rank[f"{axis} {name}"] for rank in by_rank)
    assert got == other
    if KINDS[name].splits:
        alone = estimated(name, ONE_RANK)
        for estimator in ("forward", "reverse"):
            assert relative_error(got[estimator], alone[estimator]) < EXACT
    else:  # the network has computed a loss of its part
        assert got["refused"].startswith("mesh.data: the network gives a single number, such as a loss, and sees")
        assert "output.logits, without labels in the inputs" in got["refused"]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.val_loss is None])
def test_retraining_on_two_ranks_equals_one(name: str, by_rank: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = structured_batches.retrained(name, ONE_RANK, tmp_path)
    for rank in by_rank:
        assert rank[f"retrain {name}"] == pytest.approx(alone, rel=EXACT)


# ---- what a batch is ---------------------------------------------------------------------------------------------


def test_inputs_go_to_the_network_by_their_structure() -> None:
    def network(*positions: Any, **keywords: Any) -> tuple[Any, Any]:
        return positions, keywords

    pair = namedtuple("pair", "a b")
    assert call(network, {"x": 1, "y": 2}) == ((), {"x": 1, "y": 2})
    assert call(network, (1, 2)) == call(network, [1, 2]) == call(network, pair(1, 2)) == ((1, 2), {})
    assert call(network, "x") == (("x",), {})


def test_mappings_become_dicts_at_any_depth_and_pairs_tuples() -> None:
    class Named(dict):
        pass

    x = torch.ones(2)
    assert checked_batch([Named(a=Named(b=x), c="text"), None], "s") == ({"a": {"b": x}, "c": "text"}, None)
    assert [type(part) for part in checked_batch([Named(a=x), x], "s")] == [dict, Tensor]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.ones(2), torch.ones(2)), "gave a tuple of ndarray, Tensor: inputs is of the type ndarray; expected pairs"),
        ({"a": {"b": [np.ones(2)]}}, "gave a dict: batch['a']['b'][0] is of the type ndarray; expected pairs"),
        (
            ({"a": torch.ones(2)}, SimpleNamespace()),
            "gave a tuple of dict, SimpleNamespace: targets is of the type Sim",
        ),
        ({"a": 1, "b": "text"}, "gave a dict, which holds no tensor; expected pairs (x, y) of tensors"),
        ((), "gave a tuple without parts, which holds no tensor"),
        (np.ones(2), "gave a ndarray; expected pairs (x, y) of tensors, or mappings, sequences or other pytrees"),
    ],
)
def test_what_is_no_batch_is_refused_with_its_path(batch: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        checked_batch(batch, "train_batches")
    assert str(raised.value).startswith(f"task.train_batches: {message}")
    assert len(str(raised.value).splitlines()) == 1


def test_samples_are_counted_and_taken_leaf_by_leaf() -> None:
    rows = {"x": torch.ones(4, 2), "all": torch.ones(1, 3), "scale": torch.ones(()), "name": "text"}
    batch = (rows, {"y": torch.arange(4)})
    assert (common_rows(batch), samples_in(batch)) == (4, 4)
    inputs, targets = first_samples(batch, 3)
    assert [tuple(inputs[name].shape) for name in ("x", "all", "scale")] == [(3, 2), (1, 3), ()]
    assert inputs["name"] == "text" and targets["y"].tolist() == [0, 1, 2]
    uneven = (torch.ones(4), torch.ones(5))
    assert (common_rows(uneven), samples_in(uneven)) == (None, 5)
    assert first_samples(uneven, 2) is uneven
    assert samples_in((torch.ones(4), None)) == 4 and samples_in((torch.ones(4), torch.ones(()))) == 1


def test_batches_differ_in_structure_plain_leaves_or_bits() -> None:
    batch = {"x": torch.tensor([1.0, float("nan")]), "n": 3}
    others = [{"x": batch["x"], "n": 4}, {"x": batch["x"]}, {"x": torch.ones(2), "n": 3}, (batch["x"], 3)]
    assert same_batch(batch, {"x": batch["x"].clone(), "n": 3})
    assert not any(same_batch(batch, other) for other in others)
    prints = {tuple(batch_fingerprint(one, torch.device("cpu")).tolist()) for one in (batch, *others)}
    assert len(prints) == 5


def test_a_nan_is_named_by_its_path() -> None:
    batch = ({"pixels": torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), "ids": torch.arange(2)}, torch.ones(2))
    with pytest.raises(UserError, match=r"first NaN in sample 1, column 0 of the inputs\['pixels'\]"):
        check_finite(batch, "task.train_batches", "batch 0")
    with pytest.raises(UserError, match=r"of the batch\['y'\]\[0\]"):
        check_finite({"y": [torch.full((2,), torch.inf)]}, "task.train_batches", "batch 0")
    check_finite({"y": torch.arange(2), "note": "text"}, "task.train_batches", "batch 0")


def test_a_nan_in_a_leaf_ends_a_run_before_training(tmp_path: Path) -> None:
    task = StructuredTask(KINDS["nested"])
    poisoned = KINDS["nested"].batch({**draw("val"), "weight": torch.full((7,), torch.nan)})
    task.val_batches = lambda outer_step: iter([poisoned])  # type: ignore[method-assign]
    config = {
        "hyperparameters": {"lr": {"init": 0.1, "step": 0.1}},
        "inner": {"epochs": 1},
        "output_dir": str(tmp_path),
    }
    with pytest.raises(UserError, match=r"task.val_batches: batch 0 .* in sample 0 of the targets\['weight'\]"):
        fds_dist.optimize(config, task=task, progress=False)  # type: ignore[arg-type]


def test_leaves_are_named_by_their_place() -> None:
    assert [name for name, _ in named_leaves(({"a": 1}, [2, 3, 4]))] == [
        "inputs['a']",
        "targets[0]",
        "targets[1]",
        "targets[2]",
    ]


# ---- which arguments a loss takes --------------------------------------------------------------------------------


def seen(*arguments: Any) -> tuple[Any, ...]:
    return arguments


@pytest.mark.parametrize(
    ("loss", "expected", "required"),
    [
        (lambda output, target: seen(output, target), ("o", "t"), 2),
        (lambda output, target, h: seen(output, target, h), ("o", "t", "h"), 3),
        (lambda output, batch: seen(output, batch), ("o", ("i", "t")), 2),
        (lambda output, batch, h: seen(output, batch, h), ("o", ("i", "t"), "h"), 3),
        (lambda output, target, batch: seen(output, target, batch), ("o", "t", ("i", "t")), 2),
        (lambda output, target, batch, h: seen(output, target, batch, h), ("o", "t", ("i", "t"), "h"), 3),
        (lambda output, target, h, batch: seen(output, target, h, batch), ("o", "t", "h", ("i", "t")), 3),
        (lambda output, target, *, batch: seen(output, target, batch), ("o", "t", ("i", "t")), 2),
        (lambda output, *, batch: seen(output, batch), ("o", ("i", "t")), 2),
        (lambda output, target, batch=None: seen(output, target, batch), ("o", "t", ("i", "t")), 2),
    ],
)
def test_a_parameter_called_batch_gets_the_whole_batch(loss: Any, expected: tuple[Any, ...], required: int) -> None:
    function = OnBatch(loss)
    extra = ["h"] if "h" in expected else []
    assert function("o", ("i", "t"), *extra) == expected
    assert function.accepts(len(extra)) and function.required == required
    assert not function.accepts(len(extra) + 1)
