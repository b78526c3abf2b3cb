# Shared by the launch scripts; sourced, not run.
# shellcheck shell=bash
# shellcheck disable=SC2034 # used by who sources this

root=$(cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)

# A rank that died leaves the old store behind; a restart must not meet it.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE="${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Prints the comment at the head of the calling script where its first argument asks for help or is missing.
help_or_go_on() {
    case ${1:-} in
    "" | -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[1]}"
        exit
        ;;
    esac
}

# Prints the path of a program: that of .venv, or else the one on the PATH.
program() {
    if [[ -x $root/.venv/bin/$1 ]]; then
        printf '%s\n' "$root/.venv/bin/$1"
    elif ! command -v "$1"; then
        printf 'fds-dist: there is no %s in .venv/bin or on the PATH; launch/setup.sh installs it\n' "$1" >&2
        return 1
    fi
}

# Prints how many processes a node gets: NPROC, or one for each GPU, or 1.
processes() {
    local gpus=0
    if [[ -z ${NPROC:-} ]] && command -v nvidia-smi >/dev/null; then
        gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU') || gpus=0
    fi
    printf '%s\n' "${NPROC:-$((gpus > 0 ? gpus : 1))}"
}
