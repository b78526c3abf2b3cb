#!/usr/bin/env bash
# Makes .venv in the repository's root and installs fds-dist and its dependencies there, unless that is done already.
#
#   launch/setup.sh [EXTRAS]     EXTRAS: comma-separated extras of pyproject.toml, e.g. dev,search
#
# Environment: PYTHON   the interpreter to make .venv with (3.10 to 3.13); without it, the first one found
#              TORCH    PyTorch's build: cpu, cu126, cu128, ..., or pip for the one that pip takes by itself;
#                       without it, cpu where there is no NVIDIA driver, else pip
set -euo pipefail

# shellcheck source=launch/help.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/help.sh"
help_where_asked "$@"
venv=$root/.venv
python=$venv/bin/python
stamp=$venv/.fds-dist-installed # the last complete install: root, checksum and extras, a line each
log=$venv/install.log

say() { printf 'fds-dist: %s\n' "$*"; }

fail() {
    say "$*" >&2
    exit 1
}

# Prints the version of a usable interpreter, and "without venv" if that module is missing.
probe() {
    "$1" -c '
import importlib.util, sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(1)
has_venv = importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv")
print("%d.%d" % sys.version_info[:2], "" if has_venv else "without venv")' 2>/dev/null
}

find_python() {
    local candidate version lacking=""
    local candidates=(python3 python3.13 python3.12 python3.11 python3.10)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        version=$(probe "$candidate") || continue
        if [[ $version != *without* ]]; then
            printf '%s\n' "$candidate"
            return
        fi
        lacking=${lacking:-$candidate}
    done
    [[ -z $lacking ]] || fail "$lacking lacks the venv module; install it (Debian, Ubuntu: apt install python3-venv)," \
        "or name another Python: PYTHON=/path/to/python3"
    [[ -z ${PYTHON:-} ]] || fail "PYTHON=$PYTHON is no working Python 3.10 to 3.13"
    fail "no Python 3.10 to 3.13 found; install one, or name it: PYTHON=/path/to/python3"
}

make_venv() {
    local base
    base=$(find_python)
    say "making .venv with $base"
    "$base" -m venv --clear "$venv" || fail "$base -m venv $venv failed"
}

# Passes on only what takes long of what pip says: downloads of 100 MB and more, and the unpacking at the end.
progress() {
    awk '$1 == "Downloading" && ($NF == "GB)" || ($NF == "MB)" && substr($(NF - 1), 2) + 0 >= 100)) {
             count = split($2, path, "/"); split(path[count], part, "-")
             print "  downloading", part[1], part[2], $(NF - 1), $NF; fflush()
         }
         $1 == "Installing" && $2 == "collected" { print "  unpacking"; fflush() }'
}

# Prints what pip would install as torch, such as "2.13.0 cuda"; nothing where it is there already.
offered_torch() {
    "$python" -m pip install --dry-run --no-deps --quiet --report - --constraint "$root/constraints.txt" torch 2>"$log" |
        "$python" -c '
import json, sys
for entry in json.load(sys.stdin)["install"]:
    metadata = entry["metadata"]
    cuda = any(name.startswith(("nvidia", "cuda")) for name in metadata.get("requires_dist", []))
    print(metadata["version"], "cuda" if cuda else "cpu")' 2>/dev/null
}

# Pip itself takes PyTorch with CUDA on Linux: gigabytes that a machine without a GPU has no use for. uv knows the builds.
install_torch() {
    local wanted=${TORCH:-} version="" offered=""
    [[ -n $wanted ]] || { [[ -e /proc/driver/nvidia/version ]] || command -v nvidia-smi >/dev/null && wanted=pip; } || wanted=cpu
    read -r version offered < <(offered_torch) || true
    [[ -n $version && $wanted != pip && $wanted != "$offered" ]] || {
        [[ $offered != cuda ]] || say "PyTorch $version comes with CUDA: some 3 GB to download, 5.5 GB on disk (TORCH=cpu is small)"
        return 0
    }
    say "PyTorch ${version%%+*} in the build $wanted"
    if "$python" -m pip install --disable-pip-version-check --quiet --constraint "$root/constraints.txt" uv >"$log" 2>&1 &&
        "$python" -m uv pip install --quiet --python "$python" --torch-backend "$wanted" \
            --constraint "$root/constraints.txt" torch torchvision >>"$log" 2>&1; then
        return 0
    fi
    [[ -z ${TORCH:-} ]] || fail "no build $wanted of PyTorch ${version%%+*} (the reasons: $log)"
    say "the build $wanted is not to be had from here; pip takes its own, $version"
}

install() {
    local later=""
    rm -f "$stamp"
    "$python" -m pip --version >/dev/null 2>&1 || make_venv # an interrupted `venv` leaves a Python without pip
    export DS_BUILD_OPS="${DS_BUILD_OPS:-0}" # deepspeed would compile its operators here; it does when they are used
    say "installing into .venv (the first time takes minutes) ..."
    install_torch
    # Half of pip's time goes into compiling every module. Python compiles those in use, and keeps that, unless told not to.
    [[ -n ${PYTHONDONTWRITEBYTECODE:-} ]] || later=--no-compile
    # compat: a plain path, which type checkers and editors follow; the default is an import hook, which they cannot.
    if ! "$python" -m pip install --disable-pip-version-check --no-input --progress-bar off ${later:+"$later"} \
        --editable "$root${extras:+[$extras]}" --config-settings editable_mode=compat \
        --constraint "$root/constraints.txt" 2>&1 | tee "$log" | progress; then
        tail -n 12 "$log" >&2
        fail "the installation failed; all of pip's output: $log"
    fi
    printf '%s\n' "$root" "$key" "$extras" >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "installed in $SECONDS s"
}

trap 'fail "interrupted; the next run takes it up again"' INT
wanted=${1:-}
from="" installed="" extras="" version=""
[[ ! -f $stamp ]] || { read -r from && read -r installed && read -r extras; } <"$stamp" || true

if [[ -e $venv || -L $venv ]]; then
    if ! version=$(probe "$python"); then
        say "the Python of .venv does not work (any more) or is not 3.10 to 3.13: making .venv anew"
    elif [[ ${from:-$root} != "$root" ]]; then
        say ".venv was made in $from: making it anew"
        version=""
    fi
fi
if [[ -z $version ]]; then
    make_venv
    version=$(probe "$python")
    extras=""
fi

key="$(cat "$root/pyproject.toml" "$root/constraints.txt" | cksum), Python ${version%% *}"
missing=0
for extra in ${wanted//,/ }; do
    [[ ,$extras, == *,$extra,* ]] || { extras=${extras:+$extras,}$extra && missing=1; }
done
[[ $key == "$installed" && $missing == 0 && -f $stamp ]] || install
