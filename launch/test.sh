#!/usr/bin/env bash
# Installs what the tests need into .venv and runs them.
#
#   launch/test.sh [PYTEST_ARGUMENTS ...]     e.g. -m slow, -m "" (all), -k schedule, tests/test_layers.py
#
# Environment: PYTHON    the interpreter to make .venv with; without it, the first that fits
#              WORKERS   how many processes share the tests, file by file (default: 2; 0: one after another, here)
set -euo pipefail

# shellcheck source=launch/help.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/help.sh"
help_where_asked "$@"

unset PYTHONDONTWRITEBYTECODE # the tests start some hundred processes, each of which would compile the package anew
"$root/launch/setup.sh" dev,search,schedulefree,tensorboard,deepspeed
cd "$root"
exec .venv/bin/python -m pytest -n "${WORKERS:-2}" --dist loadfile "$@"
