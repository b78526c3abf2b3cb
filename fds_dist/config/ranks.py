"""The sections of the config about ranks: the mesh, the checks that they agree, checkpoints."""

from __future__ import annotations

from typing import Literal

from fds_dist.common.kinds import AutoCount, Count, Seconds, SecondsFromZero, Timeout
from fds_dist.config.sections import Section


class MeshConfig(Section):
    """Ranks along each parallel axis."""

    tangent: AutoCount = "auto"
    """Ranks that share out the tangents; auto: all ranks that the other axes leave."""

    data: Count = 1
    """Ranks that share out each batch."""

    replica: Count = 1
    """Independent inner runs whose hypergradients are averaged."""

    batch_norm: Literal["whole", "part"] = "whole"
    """Batch statistics of batch-norm along the data axis: those of the whole batch, or of each rank's part."""


class DistributedConfig(Section):
    """How ranks wait for each other."""

    timeout: Timeout = 600.0
    """Seconds after which a rank that waits for another one ends, with a line that names the rank that is silent, its
    host and its last step. More than the longest time that a rank may be busy alone: loading data, saving, compiling,
    or a callback. At least 5, since a busy machine may stop a process for a second or two; at most a day, since a job
    that is stuck still pays for all its devices. The same on all ranks."""


class ConsistencyConfig(Section):
    """Checks that ranks hold the same bits, and that an inner run equals plain PyTorch."""

    mode: Literal["verify", "broadcast", "off"] = "verify"
    """verify compares fingerprints of the weights, and asks GPUs for deterministic kernels; broadcast copies the
    weights, optimizer state and buffers of rank 0; off does neither."""

    every: Count = 100
    """Inner steps from one comparison or copy to the next."""

    witness: Literal["on", "off"] = "on"
    """Before training, compare a few steps with the same module, data and loss in plain PyTorch."""


class CheckpointConfig(Section):
    """When to save the state of a run, in addition to every outer step."""

    every_seconds: Seconds = 600.0
    """Seconds between two checkpoints within an outer step (weights, optimizer state and all tangents; by reverse mode
    every ⌈√T⌉-th state of T, and the adjoints on the way back), and within an epoch of `retrain`. Training stops only
    while they are copied to host memory, from where a thread writes them. Ranks that share out tangents check the time
    every `consistency.every` steps. Needs a file system that all ranks share."""

    grace: SecondsFromZero = 20.0
    """Seconds that a run has to end in order after SIGINT or SIGTERM within an outer step: all ranks save a checkpoint
    after the same step, and end. Where they cannot within this time they end without; a second signal, 2 seconds
    later or more, ends at once, as the first does with 0. torchrun and SLURM kill a process 30 seconds after SIGTERM
    (SLURM's `--signal=TERM@60` sends it earlier), Kubernetes after `terminationGracePeriodSeconds`."""

    keep: Count = 2
    """The number of latest checkpoints to keep."""
