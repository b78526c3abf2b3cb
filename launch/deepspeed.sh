#!/usr/bin/env bash
# Runs a command of fds-dist by DeepSpeed's launcher, on the hosts of a hostfile or on this one.
#
#   launch/deepspeed.sh optimize configs/digits.yaml [key=value ...]
#   HOSTFILE=hosts launch/deepspeed.sh retrain runs/NAME engine=deepspeed
#
# Environment: HOSTFILE    lines of "HOST slots=N", reachable by ssh without a password (this host alone)
#              NPROC       processes on each node (without HOSTFILE: one for each GPU, or 1; with it: its slots)
#              PORT        where they meet, free on the first host (29500)
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
help_or_go_on "$@"
deepspeed=$(program deepspeed)
hosts=(--num_gpus "$(processes)")
if [[ -n ${HOSTFILE:-} ]]; then
    hosts=(--hostfile "$HOSTFILE")
    [[ -z ${NPROC:-} ]] || hosts+=(--num_gpus "$NPROC")
fi
exec "$deepspeed" "${hosts[@]}" --master_port "${PORT:-29500}" --module fds_dist "$@"
