# Shared by the scripts that launch ranks, which source this file.
# shellcheck shell=bash

# shellcheck source=launch/help.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/help.sh"

# A rank that died leaves its store behind, which a restart must not use.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE="${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}"
# Its store warns in pages of C++ frames where another launcher is gone, which a line of ours tells.
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

fail() {
    printf 'fds-dist: %s\n' "$*" >&2
    exit 2
}

# Prints the Python that has fds_dist and the given module: PYTHON, or that of .venv, or the one on the PATH.
find_python() {
    local python candidates=("$root/.venv/bin/python" python python3)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        if "$python" -c 'import importlib.util as find, sys; sys.exit(not all(map(find.find_spec, sys.argv[1:])))' \
            fds_dist "$1" 2>/dev/null; then
            printf '%s\n' "$python"
            return
        fi
    done
    fail "no Python with $1 and fds_dist: ${candidates[*]}; launch/setup.sh ${1#torch} makes .venv with it"
}

# Prints how many processes a node gets: NPROC, or one for each GPU, or 1.
processes() {
    local gpus=0 visible
    if [[ -n ${NPROC:-} ]]; then
        [[ $NPROC =~ ^[1-9][0-9]*$ ]] || fail "NPROC: '$NPROC' is not valid; expected a whole number of at least 1"
        gpus=$NPROC
    elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
        gpus=${#visible[@]}
    elif command -v nvidia-smi >/dev/null; then
        gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU') || gpus=0
    fi
    printf '%s\n' "$((gpus > 0 ? gpus : 1))"
}
