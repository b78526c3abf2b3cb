"""Fingerprints: any change of the bits shows, nothing else does, and the ranks that deviate are named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fds_dist.distributed import fingerprint as fingerprint_module
from fds_dist.distributed.fingerprint import RunsDiverged, deviating_ranks, fingerprint

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.bool]
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def values(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    return (torch.randn(64, dtype=torch.float64) * 10).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_bits_give_equal_fingerprints_wherever_they_lie(dtype: torch.dtype) -> None:
    tensor = values(dtype)
    expected = fingerprint(tensor)
    assert expected.dtype == torch.int64
    assert expected.shape == ()
    spread = torch.stack([tensor, tensor], dim=1)[:, 0]  # not contiguous
    for same in (tensor.clone(), tensor.view(8, 8), spread, torch.cat([tensor[:1], tensor])[1:]):
        assert fingerprint(same) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_have_no_part_in_it(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = values(dtype)
    expected = fingerprint(tensor)
    for size in (1, 7, 63, 64):
        monkeypatch.setattr(fingerprint_module, "BLOCK", size)
        assert fingerprint(tensor) == expected


def test_a_value_stays_what_it_was() -> None:
    """Checkpoints hold none, but ranks of one run may have different releases: they compare these numbers."""
    assert fingerprint(torch.arange(5.0)).item() == -3367832807171140968
    assert fingerprint(torch.empty(0)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("position", [0, 31, 63])
def test_any_single_flipped_bit_shows(dtype: torch.dtype, position: int) -> None:
    tensor = values(dtype)
    seen = {fingerprint(tensor).item()}
    bits = tensor.view(BITS[tensor.element_size()])
    width = 8 * tensor.element_size()
    for bit in range(width):
        flip = torch.tensor(1).bitwise_left_shift(bit).to(bits.dtype)
        bits[position] ^= flip
        seen.add(fingerprint(tensor).item())
        bits[position] ^= flip
    assert len(seen) == 1 + width


def swapped(tensor: Tensor) -> Tensor:
    return tensor[[1, 0, *range(2, len(tensor))]]


def negative_zero(tensor: Tensor) -> Tensor:
    return torch.where(tensor == 0, -0.0, tensor)


def another_nan(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed.view(torch.int64)[3] ^= 1
    return changed


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        negative_zero,
        another_nan,
        lambda tensor: tensor.flip(0),
        lambda tensor: tensor.roll(1),
        lambda tensor: -tensor,
        lambda tensor: tensor.float(),
        lambda tensor: tensor[:-1],
        lambda tensor: torch.cat([tensor, torch.zeros(1, dtype=tensor.dtype)]),
    ],
    ids=["swapped", "sign of zero", "bits of a nan", "reversed", "shifted", "negated", "type", "shorter", "longer"],
)
def test_any_other_change_shows(change: Callable[[Tensor], Tensor]) -> None:
    tensor = torch.tensor([1.5, -2.25, 0.0, float("nan"), 7.0], dtype=torch.float64)
    assert fingerprint(change(tensor)) != fingerprint(tensor)


def test_many_vectors_have_many_fingerprints() -> None:
    """Neighbouring numbers at two positions, as where a few weights are off by a rounding: a weak mixture collides."""
    pairs = torch.cartesian_prod(torch.arange(-20, 20), torch.arange(-20, 20))
    near_one = pairs + torch.tensor(1.0, dtype=torch.float64).view(torch.int64)
    for vectors in (pairs, near_one.view(torch.float64)):
        assert len({fingerprint(vector).item() for vector in vectors}) == len(pairs)


def test_the_number_of_threads_does_not_matter() -> None:
    tensor = torch.randn(200_000)  # large enough for torch to split the sum
    expected, threads = fingerprint(tensor), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert fingerprint(tensor) == expected
    finally:
        torch.set_num_threads(threads)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_gives_the_same_fingerprint(dtype: torch.dtype) -> None:
    tensor = values(dtype)
    assert fingerprint(tensor.cuda()).item() == fingerprint(tensor).item()


@pytest.mark.parametrize(
    ("fingerprints", "deviating"),
    [
        ([5], []),
        ([5, 5, 5], []),
        ([5, 6, 5], [1]),
        ([6, 5, 5], [0]),
        ([5, 6], [1]),
        ([5, 6, 6, 5], [1, 2]),
        ([6, 5, 6, 5], [1, 3]),
        ([1, 2, 3, 4], [1, 2, 3]),
        ([1, 2, 2, 3, 3], [0, 3, 4]),
        ([-(2**63), 2**63 - 1, -(2**63)], [1]),
    ],
)
def test_deviating_ranks_are_those_outside_the_majority_or_unlike_rank_0(
    fingerprints: list[int], deviating: list[int]
) -> None:
    assert deviating_ranks(fingerprints) == deviating


@pytest.mark.parametrize(
    ("ranks", "last_agreed", "expected"),
    [
        ([2], None, "the weights of rank 2 differ from the other ranks' at inner step 70."),
        ([1, 3], 60, "ranks 1, 3 differ from the other ranks' at inner step 70; they were still the same at step 60"),
    ],
)
def test_the_message_names_step_and_ranks(ranks: list[int], last_agreed: int | None, expected: str) -> None:
    error = RunsDiverged(70, ranks, last_agreed)
    assert expected in str(error)
    assert (error.step, error.ranks) == (70, tuple(ranks))
