#!/usr/bin/env bash
# Runs a command of fds-dist on one node, with a process for each GPU.
#
#   launch/single_node.sh optimize configs/digits.yaml [key=value ...]
#   NPROC=4 launch/single_node.sh retrain runs/NAME
#
# Environment: NPROC              processes (one for each GPU, or 1)
#              MAX_RESTARTS       how often a job that lost a process is started again (0); give optimize a name= and
#                                 then --resume, or it begins anew
#              OMP_NUM_THREADS    threads of each process (1)
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
help_or_go_on "$@"
torchrun=$(program torchrun)
exec "$torchrun" --standalone --nproc-per-node "$(processes)" --max-restarts "${MAX_RESTARTS:-0}" -m fds_dist "$@"
