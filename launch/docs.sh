#!/usr/bin/env bash
# Builds the documentation site into site/, strictly: a broken link or an unknown name is an error.
#
#   launch/docs.sh [serve]     serve: show it at 127.0.0.1:8000 instead, and again after each change
#
# Environment: PYTHON    the interpreter to make .venv with; without it, the first that fits
set -euo pipefail

# shellcheck source=launch/help.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/help.sh"
help_where_asked "$@"

"$root/launch/setup.sh" docs
cd "$root"
if [[ ! -x .venv/bin/mkdocs ]]; then
    printf 'fds-dist: not built: the tools for the site need Python 3.11 or newer, .venv has %s\n' "$(.venv/bin/python -V)"
    exit
fi
export NO_MKDOCS_2_WARNING=1 # a note about other programs
if [[ ${1:-} == serve ]]; then
    exec .venv/bin/mkdocs serve
fi
.venv/bin/mkdocs build --strict --quiet
printf 'fds-dist: the site is in %s\n' "$root/site/index.html"
