"""The largest that a config may ask for, each with its reason: beyond, something overflows, or nothing ever ends."""

from __future__ import annotations

NUMBER = 1e38
"""Of any decimal number: float32 ends at 3.4e38, and training would go on with infinity."""

SECONDS = 1e9
"""Thirty years. Timers of the operating system overflow at 9e9."""

COUNT = 10**9
"""Of what is only counted or compared: PyTorch indexes the rows of a batch, and whatever else, by 64 bits."""

STEPS = 10**7
"""Inner steps of a horizon: with a millisecond a step, three hours. Plans with pruned steps go step by step."""

EPOCHS = 10**6
"""Passes over the data in an inner run: of one batch each, a tenth of the most steps."""

RUNS = 10**5
"""Outer steps, seeds and repetitions, each an inner run: with a second each, more than a day."""

LEARNED = 10**6
"""Learned numbers in all: each is a Python object, and a row of tangents."""

SEED = 2**63 - 1
"""PyTorch takes seeds of 64 bits, with a sign."""

PIXELS = 10**5
"""Of an image's side: a batch of one such image takes 120 GB."""

DEPTH = 1_200
"""Layers of a built-in network: the deepest that were ever published have a thousand. Python calls them by recursion or
one by one, and each step walks through all of them."""

CONFIG_BYTES = 2**19
"""Of a config's file: fifty thousand numbers, and seconds to read. A larger file is data that was named by mistake."""

CONFIG_DEPTH = 50
"""Lists and mappings within one another in a config: its own sections have five."""

CONFIG_VALUES = 500_000
"""Values in a config, those that aliases stand for counted each time."""

CONFIG_KEYS = 1_000
"""Keys of one mapping in a config: for each unknown one, the nearest valid key is looked for."""

NAME_LENGTH = 200
"""Characters of a folder's name: file systems end at 255 bytes, and a number may be added."""

DIMENSION = 2_000
"""Of the task synthetic: its matrices are factorized at once, in seconds."""

SAMPLES = 10**6
"""Of the task synthetic, as for its dimension."""
