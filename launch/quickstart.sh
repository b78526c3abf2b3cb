#!/usr/bin/env bash
# Learns a learning-rate, momentum and weight-decay schedule on the digits task, with nothing but Python 3.10 to 3.13.
#
#   launch/quickstart.sh [key=value ...]     e.g. seed=1 hyperparameters.lr.buckets=5; the keys are those of configs/digits.yaml
#
# Environment: NPROC    processes to share the tangents among (2)
#              PYTHON   the interpreter to make .venv with; without it, the first that fits
set -euo pipefail

# shellcheck source=launch/help.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/help.sh"
help_where_asked "$@"

"$root/launch/setup.sh"
cd "$root"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
if (($#)); then # here a mistake in an argument is one clear line; torchrun would add a page
    .venv/bin/fds-dist check configs/digits.yaml --world-size "${NPROC:-2}" "$@" >/dev/null
fi
.venv/bin/torchrun --standalone --nproc-per-node "${NPROC:-2}" -m fds_dist optimize configs/digits.yaml "$@"
cat <<END

The learned schedule and the record of every outer step are in the folder above. For your own task see README.md, then run
  .venv/bin/fds-dist check YOUR_CONFIG
END
