"""Image data sets: read from files in torchvision's formats, split, streamed, and downloaded once."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fds_dist.common.faults import UserError
from fds_dist.common.vision import import_torchvision
from fds_dist.tasks import build_task
from fds_dist.tasks.base import task_faults
from fds_dist.tasks.download import download_once
from fds_dist.tasks.images import IMAGE_SETS

TRAIN, TEST = 60, 20
SETS = {images.name: images for images in IMAGE_SETS}
PLAIN: dict[str, Any] = {"batch_size": 8, "crop": 0, "flip": False}


def build(name, seed=0, **options) -> Any:
    return build_task(name, options, seed=seed)


def faults_of(function, *args, **kwargs):
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    return {fault.key: str(fault) for fault in error.value.faults}


# Files with known content: image number i of the training part has the value i in all pixels, of the test part 100 + i;
# in color, the red, green and blue channels 0, 1 and 2 more.


def pixels(count, offset, channels, side):
    """uint8 [count, channels, side, side]"""
    values = np.arange(count)[:, None] + offset + np.arange(channels)
    return np.broadcast_to(values[:, :, None, None], (count, channels, side, side)).astype(np.uint8)


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(head + np.ascontiguousarray(array).tobytes())


def write_mnist(root, folder):
    for part, count, offset in (("train", TRAIN, 0), ("t10k", TEST, 100)):
        write_idx(root / folder / "raw" / f"{part}-images-idx3-ubyte", pixels(count, offset, 1, 28)[:, 0])
        write_idx(root / folder / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)


def write_cifar(root, folder, files, labels, classes):
    (root / folder).mkdir(parents=True)
    for names, count, offset in files:
        images = pixels(count, offset, 3, 32).reshape(len(names), -1, 3 * 32 * 32)
        numbers = np.arange(count).reshape(len(names), -1) % classes
        for name, data, label in zip(names, images, numbers, strict=True):
            (root / folder / name).write_bytes(pickle.dumps({"data": data, labels: label.tolist()}))
    meta, key = ("batches.meta", "label_names") if classes == 10 else ("meta", "fine_label_names")
    (root / folder / meta).write_bytes(pickle.dumps({key: [str(number) for number in range(classes)]}))


def write_cifar10(root):
    parts = [f"data_batch_{number}" for number in range(1, 6)]
    files = [(parts, TRAIN, 0), (["test_batch"], TEST, 100)]
    write_cifar(root, "cifar-10-batches-py", files, "labels", 10)


def write_cifar100(root):
    files = [(["train"], TRAIN, 0), (["test"], TEST, 100)]
    write_cifar(root, "cifar-100-python", files, "fine_labels", 100)


def write_svhn(root):
    from scipy.io import savemat

    for part, count, offset in (("train", TRAIN, 0), ("test", TEST, 100)):
        images = pixels(count, offset, 3, 32).transpose(2, 3, 1, 0)
        labels = (np.arange(count) - 1) % 10 + 1  # its files call the digit 0 ten
        savemat(root / f"{part}_32x32.mat", {"X": images, "y": labels[:, None]})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mnist(root, "MNIST")
    write_mnist(root, "FashionMNIST")
    write_cifar10(root)
    write_cifar100(root)
    write_svhn(root)
    return root


@pytest.fixture(autouse=True)
def without_checksums(monkeypatch, data):
    """Our files have other checksums than the published ones."""
    datasets = import_torchvision().datasets
    for module in (datasets.cifar, datasets.svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: os.path.isfile(path))
    monkeypatch.setenv("FDS_DIST_DATA", str(data))


def images_of(name, batches):
    """The inputs of all batches as whole numbers 0..255, [N, C, H, W]."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (SETS[name].mean, SETS[name].std))
    return (torch.cat([x for x, _ in batches]) * std + mean).mul(255).round().long()


def numbers(name, batches):
    """Which samples the batches hold."""
    return images_of(name, batches)[:, 0, 0, 0].tolist()


def labels(batches):
    return torch.cat([y for _, y in batches]).tolist()


# Reading


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read_as_it_is_written(name):
    task = build(name, **PLAIN)
    channels, side, classes = len(SETS[name].mean), SETS[name].side, SETS[name].classes
    assert task_faults(task) == []
    assert (task.input_shape, task.classes) == ((channels, side, side), classes)
    test = list(task.test_batches())
    assert torch.equal(images_of(name, test), torch.from_numpy(pixels(TEST, 100, channels, side)).long())
    assert labels(test) == [number % classes for number in range(TEST)]
    train = [*task.train_batches(0, 0), *task.val_batches(0)]
    assert train[0][0].dtype == torch.float32 and train[0][1].dtype == torch.int64
    assert labels(train) == [number % classes for number in numbers(name, train)]


def test_cifar100_validates_and_tests_on_cifar100():
    task = build("cifar100", **PLAIN)  # CIFAR-10 lies beside it
    train, val, test = (
        list(batches) for batches in (task.train_batches(0, 0), task.val_batches(0), task.test_batches())
    )
    for batches in (train, val):
        assert labels(batches) == numbers("cifar100", batches)  # of CIFAR-10, labels would be these modulo 10
    assert max(labels([*train, *val])) > 10 and labels(test) == list(range(TEST))


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    message = faults_of(build, "cifar10", root=str(tmp_path))["task.root"]
    for words in (str(tmp_path), "task.download=true", "FDS_DIST_DATA", "cifar-10-batches-py"):
        assert words in message
    monkeypatch.delenv("FDS_DIST_DATA")
    monkeypatch.chdir(tmp_path)
    assert "not in data" in faults_of(build, "svhn")["task.root"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [(lambda content: content[:-5], "not complete"), (lambda content: b"some other file", "cannot be read")],
)
def test_a_damaged_file_is_told(tmp_path, damage, words):
    write_mnist(tmp_path, "MNIST")
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(damage(images.read_bytes()))
    assert words in faults_of(build, "mnist", root=str(tmp_path))["task.root"]


def test_bad_options_are_all_named_at_once():
    options = {"root": 3, "download": "yes", "crop": -1, "flip": 1, "cutout": True, "batch_size": 0, "train_size": 0}
    options["downsample"] = 3
    faults = faults_of(build, "mnist", **options)
    assert set(faults) == {f"task.{name}" for name in options}
    assert "1, 2, 4, 7, 14, 28" in faults["task.downsample"]
    assert faults["task.crop"] == "task.crop: -1 is out of range; expected a whole number of at least 0, in pixels"
    assert faults["task.cutout"].startswith("task.cutout: true is a switch; expected a whole number of at least 0")
    assert set(faults_of(build, "mnist", crop=0.5, cutoff=3)) == {"task.crop", "task.cutoff"}
    assert "at most 60" in faults_of(build, "mnist", train_size=61)["task.train_size"]
    assert "did you mean task.cutout" in faults_of(build, "mnist", cutoff=3)["task.cutoff"]


# Splits, sizes and epochs


def test_the_usual_augmentation_is_that_of_the_set():
    def moves(name):
        images = images_of(name, build(name, batch_size=8).train_batches(0, 0))
        return bool((images != images[:, :, :1, :1]).any())  # without, each channel has one value

    assert moves("cifar10") and moves("svhn") and not moves("mnist")


@pytest.mark.parametrize("overlap", [False, True])
def test_validation_stays_out_of_training_unless_asked_for(overlap):
    task = build("mnist", **{**PLAIN, "batch_size": 6}, val_fraction=0.2, val_overlap=overlap)
    for outer_step in (0, 1):
        train = numbers("mnist", task.train_batches(outer_step, 0))
        val = numbers("mnist", task.val_batches(outer_step))
        assert len(set(val)) == 12 and len(train) == len(set(train)) == 6 * task.steps_per_epoch
        assert set(val) <= set(train) if overlap else sorted(train + val) == list(range(TRAIN))
    assert set(numbers("mnist", task.val_batches(0))) != set(numbers("mnist", task.val_batches(1)))


def test_retraining_sees_all_samples():
    task = build("mnist", **{**PLAIN, "batch_size": 7}, val_fraction=0.5)
    assert (task.steps_per_epoch, task.retrain_steps_per_epoch) == (4, 8)
    epochs = [numbers("mnist", task.retrain_batches(epoch)) for epoch in (0, 0, 1)]
    assert all(len(epoch) == len(set(epoch)) == 56 for epoch in epochs)  # 60 = 8 × 7 + 4
    assert epochs[0] == epochs[1] != epochs[2]


def test_a_part_of_the_training_data_is_spread_over_it():
    task = build("mnist", **PLAIN, train_size=15)
    both = numbers("mnist", [*build("mnist", **{**PLAIN, "batch_size": 1}, train_size=15).train_batches(0, 0)])
    assert set(both) <= set(range(0, 60, 4)) and len(both) == 13  # 2 of 15 are for validation
    assert len(numbers("mnist", task.test_batches())) == TEST


def test_downsampling_averages_squares_of_pixels(tmp_path):
    write_mnist(tmp_path, "MNIST")
    image = np.arange(28 * 28).reshape(28, 28) % 251
    write_idx(tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte", image[None].repeat(TEST, 0).astype(np.uint8))
    task = build("mnist", root=str(tmp_path), **PLAIN, downsample=14)
    assert task.input_shape == (1, 2, 2)
    (inputs, _) = next(iter(task.test_batches()))
    by_hand = [[image[:14, :14].mean(), image[:14, 14:].mean()], [image[14:, :14].mean(), image[14:, 14:].mean()]]
    expected = (torch.tensor(by_hand) / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(
        inputs[0, 0].double(), expected.double(), rtol=0, atol=1e-5
    )  # float32 sums of 196 pixels


def test_the_size_of_validation_batches_can_be_chosen():
    assert [len(x) for x, _ in build("mnist", **PLAIN, val_batch_size=8).test_batches()] == [8, 8, 4]


def test_samples_in_memory_move_to_a_device_once():
    task = build("mnist", batch_size=8, crop=2, flip=True, cutout=3)
    task.to(torch.device("meta"))  # a device without memory that every machine has
    for batches in (task.train_batches(0, 0), task.retrain_batches(0), task.val_batches(0), task.test_batches()):
        assert all(part.device.type == "meta" for part in next(iter(batches)))


# Folders of images


def write_images(folder, classes=("cat", "dog"), count=5):
    from PIL import Image

    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            value = 10 * (label * count + number)
            Image.new("RGB", (12, 9), (value, 0, 0)).save(folder / name / f"{number}.png")


def red(batches):
    """The value that `write_images` gave each sample."""
    return (torch.cat([x for x, _ in batches])[:, 0, 0, 0] * 0.229 + 0.485).mul(255).round().long().tolist()


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", count=2)
    return tmp_path


def folder_task(folder, **options) -> Any:
    return build("imagefolder", root=str(folder), **{"size": 6, "batch_size": 3, "workers": 0, **options})


def test_a_folder_becomes_a_task(folder):
    task = folder_task(folder, flip=False, val_fraction=0.2)
    assert task_faults(task) == []
    assert (task.input_shape, task.classes, task.steps_per_epoch, task.retrain_steps_per_epoch) == ((3, 6, 6), 2, 2, 3)
    train, val = list(task.train_batches(0, 0)), list(task.val_batches(0))
    assert len(red(train)) == 6 and len(red(val)) == 2 and not set(red(train)) & set(red(val))
    assert labels([*train, *val]) == [int(value >= 50) for value in red([*train, *val])]
    assert red(task.test_batches()) == [0, 10, 20, 30] and labels(task.test_batches()) == [0, 0, 1, 1]


def test_workers_change_nothing(folder):
    state = torch.get_rng_state()
    here, there = (folder_task(folder, crop=2, cutout=2, workers=workers) for workers in (0, 2))
    first, second = list(here.train_batches(1, 2)), list(there.train_batches(1, 2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    (resumed,) = islice(there.train_batches(1, 2), 1, 2)
    assert torch.equal(resumed[0], first[1][0])
    assert torch.equal(torch.get_rng_state(), state)


def test_own_validation_images_are_used(folder):
    write_images(folder / "val", count=1)
    task = folder_task(folder, train_size=6)
    assert red(task.val_batches(0)) == red(task.val_batches(1)) == [0, 10]
    assert task.steps_per_epoch == task.retrain_steps_per_epoch == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_told(folder, workers):
    damaged = folder / "test" / "dog" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    task = folder_task(folder, workers=workers)
    message = faults_of(list, task.test_batches())["task.root"]
    assert message.startswith(f"task.root: {damaged} cannot be read") and "Traceback" not in message


def test_folders_that_do_not_fit_are_told(folder, tmp_path):
    write_images(folder / "val", classes=("cat", "dgo"))
    assert "dgo, dog" in faults_of(folder_task, folder)["task.root"]
    assert "train" in faults_of(folder_task, tmp_path / "nowhere")["task.root"]
    assert set(faults_of(folder_task, folder, size=0, workers=-1)) == {"task.size", "task.workers"}
    assert "missing" in faults_of(build, "imagefolder")["task.root"]


# Downloading


def fetch_slowly(root, seconds):
    """Downloads into `root`: half of it, a pause, the other half."""

    def fetch(folder):
        with (root / "log").open("a") as log:
            log.write("fetched ")
        folder.mkdir()
        (folder / "half").write_text("")
        time.sleep(seconds)
        (folder / "data").write_text("all of it")

    download_once(root, "some", (root / "data").exists, fetch)


def start(root, seconds):
    process = multiprocessing.get_context("fork").Process(target=fetch_slowly, args=(root, seconds))
    process.start()
    return process


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 30 s")


def test_one_process_downloads_and_the_others_wait(tmp_path):
    processes = [start(tmp_path, 0.5) for _ in range(3)]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "fetched "
    assert (tmp_path / "data").read_text() == "all of it"
    assert not (tmp_path / ".some.part").exists()


def test_after_a_killed_download_the_next_one_starts_afresh(tmp_path):
    killed = start(tmp_path, 60)
    wait_for((tmp_path / ".some.part" / "half").exists)
    faults = faults_of(download_once, tmp_path, "some", lambda: False, lambda folder: None, 0.3)
    assert "still holds" in faults["task.download"]
    killed.kill()
    killed.join(30)

    def fetch(folder):
        assert not folder.exists()
        folder.mkdir()
        (folder / "data").write_text("all of it")

    download_once(tmp_path, "some", lambda: False, fetch, patience=10)
    assert (tmp_path / "data").read_text() == "all of it"
    assert not (tmp_path / "half").exists() and not (tmp_path / ".some.part").exists()


def test_a_failed_download_is_told(tmp_path):
    def fetch(folder):
        raise OSError("no route to host")

    message = faults_of(download_once, tmp_path, "mnist", lambda: False, fetch)["task.download"]
    assert "mnist" in message and "no route to host" in message


def test_a_set_is_downloaded_on_request_only_where_it_is_missing(tmp_path, monkeypatch):
    fetched = []

    def download(self):
        fetched.append(self.root)
        write_mnist(Path(self.root), "MNIST")

    monkeypatch.setattr(import_torchvision().datasets.MNIST, "download", download)
    first = build("mnist", root=str(tmp_path), download=True, **PLAIN)
    again = build("mnist", root=str(tmp_path), download=True, **PLAIN)
    assert len(fetched) == 2  # once for each part
    assert numbers("mnist", first.test_batches()) == numbers("mnist", again.test_batches())


# Real files, where the environment names a folder that has them


@pytest.fixture
def real(monkeypatch):
    monkeypatch.undo()  # the tiny files above, and the checksums switched off
    if not os.environ.get("FDS_DIST_DATA"):
        pytest.skip("FDS_DIST_DATA names no folder of data sets")


@pytest.mark.data
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("name", SETS)
def test_real_images_are_complete_and_normalized(name):
    try:
        task = build(name, **{**PLAIN, "batch_size": 1000}, val_fraction=0.1)
    except UserError as error:
        pytest.skip(str(error))
    everything = torch.cat([x for x, _ in [*task.train_batches(0, 0), *task.val_batches(0)]])
    sizes = {"svhn": (73257, 26032), "mnist": (60000, 10000), "fashion_mnist": (60000, 10000)}
    train, test = sizes.get(name, (50000, 10000))
    assert train - 1000 < len(everything) <= train  # the last partial batch is dropped
    assert sum(len(y) for _, y in task.test_batches()) == test
    # The constants have four digits, and up to 2 % of the images are missing: both change a mean by less than 0.002.
    assert everything.mean((0, 2, 3)).abs().max() < 0.005
    assert (everything.std((0, 2, 3)) - 1).abs().max() < 0.005


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_is_torch_s_and_has_its_derivative(smoothing):
    task = build("mnist", **PLAIN, label_smoothing=True)
    output = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([3, 1, 4, 1, 5, 9])

    def loss(s):
        return torch.nn.functional.cross_entropy(output, target, label_smoothing=s).item()

    s = torch.tensor(smoothing, dtype=torch.float64, requires_grad=True)
    value = task.loss(output, target, {"label_smoothing": s})
    (slope,) = torch.autograd.grad(value, s)
    assert value.item() == pytest.approx(loss(smoothing), rel=1e-14)
    # It is linear in s: the difference is exact but for rounding.
    assert slope.item() == pytest.approx((loss(smoothing + 0.1) - loss(smoothing)) / 0.1, rel=1e-12)
    assert task.val_loss(output, target).item() == pytest.approx(loss(0.0), rel=1e-14)
    assert not hasattr(build("mnist", **PLAIN), "val_loss")
