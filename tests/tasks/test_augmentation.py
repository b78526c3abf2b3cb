"""Crop, flip and cutout against every outcome that there is on a small image, and the keys of the random numbers."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from fds_dist.common.faults import UserError
from fds_dist.common.randomness import generator
from fds_dist.tasks.augmentation import Augmentation, EpochOfChanges
from fds_dist.tasks.datasets import TensorTask

IMAGE = torch.arange(1.0, 19.0).reshape(2, 3, 3)  # no pixel is zero, none twice
MANY = IMAGE.expand(600, 2, 3, 3)  # an outcome of probability 1/9 is missing with probability 9·e⁻⁷⁰


def outcomes(images):
    return {tuple(image.flatten().tolist()) for image in images}


def naive_window(image, top, left):
    """`image` moved up by `top` and left by `left` pixels, pixel by pixel."""
    window = torch.zeros_like(image)
    for row in range(3):
        for column in range(3):
            if 0 <= row + top < 3 and 0 <= column + left < 3:
                window[:, row, column] = image[:, row + top, column + left]
    return window


def naive_cutout(image, row, column, side):
    """`image` without the pixels of a square of `side` around (row, column)."""
    cut = image.clone()
    for r in range(row - side // 2, row - side // 2 + side):
        for c in range(column - side // 2, column - side // 2 + side):
            if 0 <= r < 3 and 0 <= c < 3:
                cut[:, r, c] = 0
    return cut


def test_a_crop_is_any_window_of_the_padded_image():
    shifts = (-1, 0, 1)
    expected = outcomes(naive_window(IMAGE, top, left) for top in shifts for left in shifts)
    assert len(expected) == 9
    assert outcomes(Augmentation(crop=1)(MANY, generator(0))) == expected


def test_a_flip_mirrors_about_half_of_the_images():
    flipped = Augmentation(flip=True)(MANY, generator(0))
    assert outcomes(flipped) == outcomes([IMAGE, IMAGE.flip(-1)])
    share = (flipped[:, 0, 0, 0] == IMAGE[0, 0, 2]).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.1)  # five standard deviations of 600 throws


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_a_cutout_is_a_square_around_any_pixel(side):
    expected = outcomes(naive_cutout(IMAGE, row, column, side) for row in range(3) for column in range(3))
    assert outcomes(Augmentation(cutout=side)(MANY, generator(0))) == expected


@pytest.mark.parametrize("change", [Augmentation(crop=2), Augmentation(flip=True), Augmentation(cutout=2)])
def test_images_of_any_shape_keep_it_and_the_original(change):
    images = torch.rand(4, 1, 5, 8)
    before = images.clone()
    assert change(images, generator(0)).shape == images.shape
    assert torch.equal(images, before)


def test_all_three_work_together_and_none_changes_nothing():
    images = torch.rand(8, 3, 6, 6)
    assert torch.equal(Augmentation()(images, generator(0)), images)
    both = Augmentation(crop=2, flip=True, cutout=2)
    expected, by_hand = generator(5), images
    for one in (Augmentation(crop=2), Augmentation(flip=True), Augmentation(cutout=2)):
        by_hand = one(by_hand, expected)
    assert torch.equal(both(images, generator(5)), by_hand)


def test_numbers_are_those_of_the_generator_in_this_order():
    """They may not change between versions: a run that goes on meets the images of the one that began."""
    top, left, mirrored, row, column = Augmentation(2, True, 2).draw(torch.Size((6, 3, 5, 8)), generator(3))
    by_hand = generator(3)
    assert torch.equal(torch.stack([top, left]), torch.randint(5, (2, 6), generator=by_hand))
    assert torch.equal(mirrored, torch.randint(2, (6, 1, 1, 1), generator=by_hand).flatten())
    assert torch.equal(row, torch.randint(5, (6, 1), generator=by_hand).flatten())
    assert torch.equal(column, torch.randint(8, (6, 1), generator=by_hand).flatten())


@pytest.mark.parametrize("change", [Augmentation(2, True, 2), Augmentation(flip=True), Augmentation()])
def test_an_epoch_at_once_is_the_same_as_step_by_step(change):
    """Also where a batch has another shape than the first, or there are more batches than were announced."""
    shapes = [(4, 3, 6, 6), (4, 3, 6, 6), (4, 3, 8, 5), (3, 3, 6, 6), (4, 3, 6, 6)]
    epoch = EpochOfChanges(change, generator, steps=4)
    for step, images in enumerate(map(torch.rand, shapes)):
        assert torch.equal(epoch(images, step), change(images, generator(step)))


@pytest.mark.gpu
def test_a_gpu_sees_the_same_images():
    images, change = torch.rand(32, 3, 16, 16), Augmentation(crop=3, flip=True, cutout=5)
    assert torch.equal(change(images.cuda(), generator(1)).cpu(), change(images, generator(1)))


# What keys the random numbers


def augmented(seed=0, **options):
    """A task of equal images, so that batches differ by their augmentation alone."""
    labels = torch.zeros(60, dtype=torch.int64)
    return TensorTask(
        IMAGE.expand(60, 2, 3, 3), labels, batch_size=10, seed=seed, augment=Augmentation(crop=1, cutout=1), **options
    )


def inputs(batches):
    return [x for x, _ in batches]


def test_the_same_keys_give_the_same_images_and_each_key_counts():
    first = inputs(augmented().train_batches(1, 2))
    again = inputs(augmented().train_batches(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [augmented(seed=1).train_batches(1, 2), augmented().train_batches(0, 2), augmented().train_batches(1, 0)]
    for other in [first[1:], *map(inputs, others)]:  # another step, seed, outer step, epoch
        assert not torch.equal(first[0], other[0])


def test_a_run_that_starts_within_an_epoch_gets_its_batches():
    whole = inputs(augmented().train_batches(0, 3))
    resumed = inputs(islice(augmented().train_batches(0, 3), 2, None))
    assert len(whole) == 5 and all(torch.equal(a, b) for a, b in zip(whole[2:], resumed, strict=True))


def test_the_global_generator_has_no_part_in_it():
    state = torch.get_rng_state()
    before = inputs(augmented().train_batches(0, 0))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(before[0], inputs(augmented().train_batches(0, 0))[0])


def test_retraining_is_augmented_and_keyed_by_its_epoch():
    first, other = inputs(augmented().retrain_batches(0)), inputs(augmented().retrain_batches(1))
    assert len(first) == 6 and not torch.equal(first[0], other[0])
    assert any(not torch.equal(image, IMAGE) for image in first[0])
    assert torch.equal(first[0], inputs(augmented().retrain_batches(0))[0])


def test_validation_and_test_are_prepared_but_never_augmented():
    task = augmented(
        test_inputs=IMAGE[None], test_targets=torch.zeros(1, dtype=torch.int64), prepare=lambda images: 2 * images
    )
    for images, _ in [*task.val_batches(0), *task.test_batches()]:
        assert torch.equal(images, (2 * IMAGE).expand_as(images))
    assert next(iter(task.train_batches(0, 0)))[0].max() == 36  # twice the largest pixel


def test_options_of_the_sampling_are_told():
    with pytest.raises(UserError) as error:
        augmented(val_overlap=1, val_batch_size=0)
    assert [fault.key for fault in error.value.faults] == ["task.val_overlap", "task.val_batch_size"]
