"""Handwritten digits of 8×8 pixels that come with scikit-learn: nothing to download, seconds to train."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fds_dist.common.kinds import Count, OpenFraction, Seed
from fds_dist.common.options import checked
from fds_dist.tasks.in_memory import TensorTask

MEAN, STD = 0.3058, 0.3762  # of the 1,437 images outside the test part, with pixels in [0, 1]

FILE = "datasets/data/digits.csv.gz"
"""Of scikit-learn's folder: a row of 64 pixels and a label per image."""


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """What `sklearn.datasets.load_digits(return_X_y=True)` returns: pixels [1797, 64] from 0 to 16, labels [1797].

    The file is read without scikit-learn, where it is in its place: the import takes longer than all else before a run.
    """
    home = find_spec("sklearn")
    file = Path(home.origin).parent / FILE if home is not None and home.origin else None
    if file is None or not file.is_file():
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        return pixels, labels
    table = np.loadtxt(file, delimiter=",")
    return table[:, :-1], table[:, -1].astype(int)


@checked("task")
def digits(*, seed: Seed = 0, batch_size: Count = 64, val_fraction: OpenFraction = 0.1) -> TensorTask:
    """1,437 images for training and validation, 360 for testing, each 1×8×8 and normalized; 10 classes.

    The test part is stratified and the same for every seed. Raises `UserError` naming each option out of range.
    """
    pixels, labels = read_digits()
    # Every fifth image of the list sorted by class: stratified, and spread over the writers within each class.
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    images = ((torch.from_numpy(pixels).float() / 16 - MEAN) / STD).reshape(-1, 1, 8, 8)
    targets, test = torch.from_numpy(labels), torch.from_numpy(is_test)
    return TensorTask(
        images[~test],
        targets[~test],
        images[test],
        targets[test],
        batch_size=batch_size,
        val_fraction=val_fraction,
        seed=seed,
    )
