#!/usr/bin/env bash
# Runs a sweep: many jobs of one config with other values. The file is checked first; one that is wrong starts nothing.
#
#   launch/sweep.sh configs/sweeps/random.yaml              creates the sweep in Weights & Biases and works on it
#   launch/sweep.sh ENTITY/PROJECT/SWEEP_ID                 joins one, from another machine
#   launch/sweep.sh --local configs/sweeps/random.yaml      runs it here without W&B (random and grid); called again, it
#                                                           goes on with the jobs that did not finish
#   --count N                                               an agent takes N jobs; --local takes the first N
#
# The paths in a sweep's command are seen from the folder that this is called in.
#
# Environment: NPROC             processes of each job (one for each GPU, or 1)
#              COUNT             as --count (no limit but the file's run_cap)
#              OUTPUT_DIR        where --local keeps its results (runs/sweeps)
#              WANDB_API_KEY, WANDB_BASE_URL, WANDB_ENTITY, WANDB_PROJECT (fds-dist), WANDB_MODE    as W&B has them
#              OMP_NUM_THREADS   threads of each process (1)
#              PYTHON            the Python that has fds-dist (that of .venv, or the one on the PATH)
# Exit status: 0 done, 2 the file is wrong, 1 anything else; an agent's is 0 also where jobs failed, W&B tells which
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
help_or_go_on "$@"
python=$(find_python torch)
NPROC=$(processes)
export NPROC
exec "$python" -m fds_dist sweep ${COUNT:+--count "$COUNT"} ${OUTPUT_DIR:+--output-dir "$OUTPUT_DIR"} "$@"
