# Shared by the launch scripts, which source this file: the repository's root, and the answer to --help.
# shellcheck shell=bash
# shellcheck disable=SC2034 # used by the scripts that source this

root=$(cd -P "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)

# Prints the comment at the head of the script where the first argument asks for help, and ends it.
help_where_asked() {
    case ${1:-} in
    -h | --help)
        head_comment
        exit
        ;;
    esac
}

# The same, and an error without an argument.
help_or_go_on() {
    help_where_asked "$@"
    if [[ -z ${1:-} ]]; then
        head_comment >&2
        exit 2
    fi
}

# Lines of the scheduler (#SBATCH) are no part of it.
head_comment() {
    sed -n '2,/^set /{/^#\( \|$\)/s/^# \{0,1\}//p;}' "${BASH_SOURCE[-1]}"
}
