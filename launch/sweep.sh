#!/usr/bin/env bash
# Runs `fds-dist sweep`: many jobs of one config with different values. A wrong file starts nothing.
#
#   launch/sweep.sh configs/sweeps/random.yaml              creates the sweep in Weights & Biases and works on it
#   launch/sweep.sh ENTITY/PROJECT/SWEEP_ID                 joins a sweep from another machine
#   launch/sweep.sh --local configs/sweeps/random.yaml      runs the jobs here without W&B (random and grid); called
#                                                           again, it runs the jobs that did not finish
#   --count N                                               an agent takes N jobs; --local takes the first N
#   --check, --create                                       only check the file; only create the sweep in W&B
#
# The paths in a sweep's command are relative to the current folder.
#
# Environment: NPROC             processes of each job (one for each GPU, or 1)
#              COUNT             as --count (no limit but the file's run_cap)
#              OUTPUT_DIR        where --local keeps its results (runs/sweeps)
#              WANDB_API_KEY, WANDB_BASE_URL, WANDB_ENTITY, WANDB_PROJECT (fds-dist), WANDB_MODE    as W&B uses them
#              OMP_NUM_THREADS   threads of each process (1)
#              PYTHON            the Python that has fds-dist (that of .venv, or the one on the PATH)
# Exit status: 0 done, 2 the file is wrong, 1 any other error. An agent ends with 0 even if jobs failed; W&B shows which
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
help_or_go_on "$@"
python=$(find_python torch)
NPROC=$(processes)
export NPROC
exec "$python" -m fds_dist sweep ${COUNT:+--count "$COUNT"} ${OUTPUT_DIR:+--output-dir "$OUTPUT_DIR"} "$@"
