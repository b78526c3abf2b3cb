#!/usr/bin/env bash
# Runs a command of fds-dist on several nodes: start it on every node, with the same arguments and environment.
#
#   NNODES=2 ENDPOINT=node1:29400 launch/multi_node.sh optimize configs/digits.yaml [key=value ...]
#
# Environment: NNODES             nodes, required
#              ENDPOINT           HOST:PORT where they meet, required; HOST is one of them, PORT is free there
#              JOB                a name that tells jobs at the same endpoint apart (fds-dist)
#              NPROC              processes on this node (one for each GPU, or 1)
#              LOCAL_ADDR         this node's address, where the others cannot resolve its host name
#              MAX_RESTARTS       how often a job that lost a process is started again (0)
#              GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME    the network interface, where the usual one is not right
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
help_or_go_on "$@"
: "${NNODES:?is not set: how many nodes there are}" "${ENDPOINT:?is not set: HOST:PORT where the nodes meet}"
torchrun=$(program torchrun)
local_addr=()
[[ -z ${LOCAL_ADDR:-} ]] || local_addr=(--local-addr "$LOCAL_ADDR")
exec "$torchrun" --nnodes "$NNODES" --nproc-per-node "$(processes)" --max-restarts "${MAX_RESTARTS:-0}" \
    --rdzv-backend c10d --rdzv-endpoint "$ENDPOINT" --rdzv-id "${JOB:-fds-dist}" "${local_addr[@]}" -m fds_dist "$@"
