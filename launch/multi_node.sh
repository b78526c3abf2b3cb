#!/usr/bin/env bash
# Runs a command of fds-dist on several nodes: start it on every node, with the same arguments and environment.
# Every node needs the files that the command reads (config, your own code, the folder of an earlier run). The node that
# prints the progress writes the results.
#
#   NNODES=2 ENDPOINT=node1:29400 launch/multi_node.sh optimize configs/digits.yaml [key=value ...]
#
# Environment: NNODES             nodes, required
#              ENDPOINT           HOST:PORT where the nodes meet, required: a name or address by which all nodes reach one of
#                                 them, and a port that is free there
#              JOB                a name that distinguishes jobs at the same endpoint (fds-dist)
#              NPROC              processes on this node (one for each GPU, or 1)
#              MAX_RESTARTS       how often all processes start again after one was lost (0), from the last checkpoint
#              OMP_NUM_THREADS    threads of each process (1)
#              PYTHON             the Python that has fds-dist (that of .venv, or the one on the PATH)
#              LOCAL_ADDR         this node's address for the others (the one on the route to ENDPOINT)
#              GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME
#                                 the network interface on CPUs (the one on the route to the others) and GPUs (NCCL's choice)
# Exit status: the command's: 0 done, 2 wrong input, 1 any other error
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
help_or_go_on "$@"
[[ ${NNODES:-} =~ ^[1-9][0-9]*$ ]] || fail "NNODES: '${NNODES:-}' is not valid; expected how many nodes there are"
[[ ${ENDPOINT:-} == ?*:+([0-9]) ]] || fail "ENDPOINT: '${ENDPOINT:-}' is not valid; expected HOST:PORT, where the nodes meet"
python=$(find_python torch)
per_node=$(processes)

# torchrun would look up this node's name, which may have no address, or none that others can use.
host=${ENDPOINT%:*} endpoint=$ENDPOINT
address=$("$python" -m fds_dist.distributed.addresses "${host//[\[\]]/}") || exit 2
if [[ -z $address ]]; then # this node is where they meet
    address=$host endpoint=localhost:${ENDPOINT##*:}
fi
exec "$python" "$root/launch/torchrun.py" --nnodes "$NNODES" --nproc-per-node "$per_node" \
    --max-restarts "${MAX_RESTARTS:-0}" --rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "${JOB:-fds-dist}" \
    --local-addr "${LOCAL_ADDR:-$address}" -m fds_dist "$@"
