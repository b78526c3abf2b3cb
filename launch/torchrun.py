"""torchrun for the launch scripts: the same arguments, but the ranks' own messages come last when they fail.

torchrun itself ends with status 1 and a page about all failed ranks, after their messages. This program ends with the
status of the rank that failed first (2: the user's input is wrong), and prints only what no rank can print: that a rank
was killed, or that the nodes did not find each other.
"""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import main

from fds_dist.distributed.parent import tell_ranks

BY_SIGNAL = 128
"""Added to a signal's number: the exit status by which shells report it."""


def run() -> int:
    """Returns the exit status."""
    tell_ranks()
    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        print(f"fds-dist: rank {rank} was killed by {failure.signal_name()}", file=sys.stderr)
        return BY_SIGNAL - failure.exitcode
    except SignalException as stop:
        return BY_SIGNAL + stop.sigval.value
    except RendezvousError as error:
        problem = "the node where all nodes meet cannot be reached, or no longer"
        print(f"fds-dist: {problem}: {error or error!r}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
