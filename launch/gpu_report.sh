#!/usr/bin/env bash
# Runs the tests for a GPU, bench, compiled steps and a small search, and writes all figures to one JSON file.
#
#   launch/gpu_report.sh [gpu_report.json] [--seconds 540] [--parts tests search bench steps kernels]
#
# Without --parts all but kernels, which times options of the compiler that no run takes yet beside those that runs take.
# It takes at most that long, needs no network, and nothing of this project installed: only PyTorch, what pyproject.toml
# lists of Python packages (without wandb), and pytest. A part that fails or takes too long leaves the others as they are.
#
# Environment: PYTHON            the interpreter; without it, the first one with PyTorch
#              FDS_DIST_DEVICE   cpu: without a GPU, to see that the report itself works
set -euo pipefail

# shellcheck source=launch/common.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/common.sh"
help_where_asked "$@"

export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python=$(find_python torch)
exec "$python" "$root/launch/gpu_report.py" "$@"
