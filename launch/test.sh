#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them.
#
#   launch/test.sh [PYTEST_ARGUMENTS ...]     e.g. -m slow, -m "" (all), -k schedule, tests/test_layers.py
#
# Environment: PYTHON    the interpreter to make .venv with; without it, the first that fits
#              WORKERS   how many processes share the tests, file by file (default: one more than there are cores, since
#                        many tests wait for something, and at most 8; 0: one after another, here)
set -euo pipefail

# shellcheck source=launch/help.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/help.sh"
help_where_asked "$@"

unset PYTHONDONTWRITEBYTECODE # the tests start some hundred processes, each of which would compile the package anew
"$root/launch/setup.sh" dev,search,schedulefree,tensorboard,deepspeed
cd "$root"
cores=$(getconf _NPROCESSORS_ONLN)
exec .venv/bin/python -m pytest -n "${WORKERS:-$((cores < 7 ? cores + 1 : 8))}" --dist loadfile "$@"
