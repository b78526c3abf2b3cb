"""`python -m fds_dist` is `fds-dist`."""

from __future__ import annotations

import sys

from fds_dist.cli import main

if __name__ == "__main__":
    sys.exit(main())
