#!/usr/bin/env bash
# Runs a command of fds-dist on one node, with a process for each GPU.
#
#   launch/single_node.sh optimize configs/digits.yaml [key=value ...]
#   NPROC=4 launch/single_node.sh retrain runs/NAME
#
# Environment: NPROC              processes (one for each GPU, or 1)
#              MAX_RESTARTS       how often all processes start again after one was lost (0), from the last checkpoint
#              OMP_NUM_THREADS    threads of each process (1)
#              PYTHON             the Python that has fds-dist (that of .venv, or the one on the PATH)
# Exit status: the command's: 0 done, 2 wrong input, 1 any other error
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
help_or_go_on "$@"
python=$(find_python torch)
per_node=$(processes)
# The ranks meet at an address that works even if the host's name has no address.
exec "$python" "$root/launch/torchrun.py" --standalone --local-addr 127.0.0.1 --nproc-per-node "$per_node" \
    --max-restarts "${MAX_RESTARTS:-0}" -m fds_dist "$@"
