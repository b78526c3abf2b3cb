#!/usr/bin/env bash
# Runs a command of fds-dist with DeepSpeed's launcher, on the hosts of a hostfile or on this host.
#
#   launch/deepspeed.sh optimize configs/digits.yaml [key=value ...]
#   HOSTFILE=hosts launch/deepspeed.sh retrain runs/NAME engine=deepspeed
#
# Environment: HOSTFILE           lines of "HOST slots=N", reachable by ssh without a password (only this host)
#              NPROC              processes on each node (without HOSTFILE: one for each GPU, or 1; with HOSTFILE: its slots)
#              PORT               the port where the processes meet, free on the first host (29500)
#              OMP_NUM_THREADS    threads of each process (1)
#              PYTHON             the Python that has fds-dist and deepspeed (that of .venv, or the one on the PATH)
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
help_or_go_on "$@"
python=$(find_python deepspeed)
hosts=()
if [[ -n ${HOSTFILE:-} ]]; then
    [[ -f $HOSTFILE ]] || fail "HOSTFILE: there is no file $HOSTFILE; expected one with lines of HOST slots=N"
    hosts=(--hostfile "$HOSTFILE")
fi
if [[ -z ${HOSTFILE:-} || -n ${NPROC:-} ]]; then
    per_node=$(processes)
    hosts+=(--num_gpus "$per_node")
fi
exec "$python" -m deepspeed.launcher.runner "${hosts[@]}" --master_port "${PORT:-29500}" --module fds_dist "$@"
